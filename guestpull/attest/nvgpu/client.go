package nvgpu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Program is where the driver's image has the program.
const Program = "/usr/bin/coffer-gpu-evidence"

// questionTimeout bounds a question, whatever the caller would wait. The driver needs seconds to open eight GPUs, and a second for a report.
const questionTimeout = 2 * time.Minute

// errProtocol is an answer that the program never gives.
var errProtocol = fmt.Errorf("program that asks the NVIDIA driver gave an unusable answer: %w", errdefs.ErrUnavailable)

// Start starts a process and returns its pid and a channel that gets its exit status once: see reap.Table.
type Start func(cmd *exec.Cmd) (pid int, exit <-chan int, err error)

// Options say how the program is run.
type Options struct {
	// Program is its path, as seen from Root. Empty means Program.
	Program string
	// Root becomes its root directory. Empty leaves it as it is.
	Root string
	// Library is the path of NVML (libnvidia-ml.so.1), as seen from Root. Empty leaves it to the loader to find it.
	Library string
	// Start starts it. Required.
	Start Start
}

// Client asks questions. Calls may be concurrent. Whatever keeps the program from answering is Unavailable; what it answers instead has
// the class that the method names.
type Client struct{ options Options }

// New returns a Client. It starts nothing.
func New(o Options) *Client {
	if o.Program == "" {
		o.Program = Program
	}
	return &Client{options: o}
}

// GPUs lists the driver's GPUs in its own order. No driver, or no GPU that it can use, is FailedPrecondition.
func (c *Client) GPUs(ctx context.Context) ([]GPU, error) {
	a, err := c.ask(ctx, Question{Op: OpGPUs})
	if err != nil {
		return nil, fmt.Errorf("list GPUs: %w", err)
	}
	if a.GPUs == nil {
		return nil, fmt.Errorf("list GPUs: %w", errProtocol)
	}
	if err := checkGPUs(*a.GPUs); err != nil {
		return nil, fmt.Errorf("list GPUs: %w", err)
	}
	return *a.GPUs, nil
}

// State tells how confidential computing is set up. NotImplemented: the driver or the GPUs know none.
func (c *Client) State(ctx context.Context) (State, error) {
	a, err := c.ask(ctx, Question{Op: OpState})
	if err != nil {
		return State{}, fmt.Errorf("ask for the state of confidential computing on GPUs: %w", err)
	}
	if a.State == nil {
		return State{}, fmt.Errorf("ask for the state of confidential computing on GPUs: %w", errProtocol)
	}
	if err := checkState(*a.State); err != nil {
		return State{}, fmt.Errorf("ask for the state of confidential computing on GPUs: %w", err)
	}
	return *a.State, nil
}

// Evidence returns the evidence of all GPUs, each bound to nonce, which has kbs.NVIDIANonce bytes. One GPU without evidence is an error for
// all of them. FailedPrecondition: confidential computing is off, or there is no GPU.
func (c *Client) Evidence(ctx context.Context, nonce []byte) (*kbs.NVIDIAEvidence, error) {
	if len(nonce) != kbs.NVIDIANonce {
		return nil, fmt.Errorf("collect evidence of GPUs: nonce of %d bytes instead of %d: %w", len(nonce), kbs.NVIDIANonce, errdefs.ErrInvalidArgument)
	}
	a, err := c.ask(ctx, Question{Op: OpEvidence, Nonce: nonce})
	if err != nil {
		return nil, fmt.Errorf("collect evidence of GPUs: %w", err)
	}
	if a.Evidence == nil {
		return nil, fmt.Errorf("collect evidence of GPUs: %w", errProtocol)
	}
	if err := checkEvidence(a.Evidence); err != nil {
		return nil, fmt.Errorf("collect evidence of GPUs: %w", err)
	}
	return a.Evidence, nil
}

// SetReady lets the GPUs accept work, or no longer. It must be called with true only after the evidence was accepted.
func (c *Client) SetReady(ctx context.Context, ready bool) error {
	a, err := c.ask(ctx, Question{Op: OpSetReady, Ready: ready})
	if err == nil && !a.Done {
		err = errProtocol
	}
	if err != nil {
		return fmt.Errorf("set the GPUs' ready state to %t: %w", ready, err)
	}
	return nil
}

// ask runs the program for one question.
func (c *Client) ask(ctx context.Context, q Question) (_ *Answer, retErr error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	q.Version = Version
	line, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	r, err := c.launch()
	if err != nil {
		return nil, fmt.Errorf("start %s, which asks the NVIDIA driver: %w: %w", c.options.Program, err, errdefs.ErrUnavailable)
	}
	defer func() { retErr = errors.Join(retErr, r.end()) }()
	stop := context.AfterFunc(ctx, r.interrupt)
	defer stop()
	if _, err := r.in.Write(append(line, '\n')); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	} // another failure means that the program has ended, of which its output will tell
	text, err := bufio.NewReader(io.LimitReader(r.out, MaxAnswer)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s gave no answer in time: %w", c.options.Program, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("%s gave no answer of one line within %d bytes: %w", c.options.Program, MaxAnswer, errdefs.ErrUnavailable)
	}
	return decode(text, q.Op)
}

// decode takes an answer to op and nothing else.
func decode(text []byte, op Op) (*Answer, error) {
	var a Answer
	if err := kbs.DecodeStrict(text, MaxAnswer, &a); err != nil || a.Version != Version {
		return nil, errors.Join(errProtocol, err)
	}
	members := map[Op]bool{OpGPUs: a.GPUs != nil, OpState: a.State != nil, OpEvidence: a.Evidence != nil, OpSetReady: a.Done}
	for member, there := range members {
		if there && (member != op || a.Failure != nil) {
			return nil, errProtocol
		}
	}
	if a.Failure != nil {
		return nil, a.Failure.err()
	}
	return &a, nil
}

// run is the program while it runs.
type run struct {
	in, out *os.File
	pidfd   int
	exit    <-chan int
}

func (c *Client) launch() (_ *run, retErr error) {
	questions, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, questions.Close()) }()
	out, answers, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	defer func() { retErr = errors.Join(retErr, answers.Close()) }()
	r := &run{in: in, out: out, pidfd: -1}
	cmd := exec.Command(c.options.Program)
	if c.options.Library != "" {
		cmd.Args = append(cmd.Args, c.options.Library)
	}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOTRACEBACK=none"} // NVML looks for nvidia-modprobe in PATH
	cmd.Stdin, cmd.Stdout = questions, answers                                   // standard error would be the host's console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &r.pidfd, Chroot: c.options.Root}
	if _, r.exit, err = c.options.Start(cmd); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	return r, nil
}

// interrupt ends reading and writing, now and from now on.
func (r *run) interrupt() {
	past := time.Unix(1, 0)
	_ = errors.Join(r.in.SetDeadline(past), r.out.SetDeadline(past)) // pipes have deadlines; end kills the program in any case
}

// end kills the program, which has said all that it was asked for or took too long, and returns when it is gone.
func (r *run) end() error {
	err := errors.Join(r.in.Close(), r.out.Close())
	if kill := unix.PidfdSendSignal(r.pidfd, unix.SIGKILL, nil, 0); kill != nil && !errors.Is(kill, unix.ESRCH) {
		return errors.Join(err, fmt.Errorf("end program that asks the NVIDIA driver: %w", kill))
	}
	<-r.exit
	return errors.Join(err, unix.Close(r.pidfd))
}
