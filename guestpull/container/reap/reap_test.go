package reap

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	ctx, stop := context.WithCancel(context.Background())
	if err := Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

func status(t *testing.T, exit <-chan int) int {
	t.Helper()
	select {
	case s := <-exit:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no exit was reported")
		return 0
	}
}

func TestManyExitsAtOnce(t *testing.T) {
	table := New()
	defer table.Close()
	exits := map[int]<-chan int{}
	for want := range 60 {
		_, exit, err := table.Start(exec.Command("sh", "-c", fmt.Sprintf("exit %d", want)))
		if err != nil {
			t.Fatal(err)
		}
		exits[want] = exit
	}
	for want, exit := range exits {
		if got := status(t, exit); got != want {
			t.Errorf("exit status %d, want %d", got, want)
		}
	}
}

func TestFatalSignal(t *testing.T) {
	table := New()
	defer table.Close()
	_, exit, err := table.Start(exec.Command("sh", "-c", "kill -TERM $$"))
	if err != nil {
		t.Fatal(err)
	}
	if got := status(t, exit); got != 128+15 {
		t.Errorf("exit status %d", got)
	}
}

// TestOrphan: the child of a child that has ended is reaped here, and its exit is known although its pid is learned late.
func TestOrphan(t *testing.T) {
	table := New()
	defer table.Close()
	flight := table.Begin()
	defer flight.End()
	file := t.TempDir() + "/pid"
	_, exit, err := table.Start(exec.Command("sh", "-c", "sh -c 'echo $$ >"+file+".new; mv "+file+".new "+file+"; exit 9' &"))
	if err != nil {
		t.Fatal(err)
	}
	status(t, exit)
	deadline := time.Now().Add(20 * time.Second)
	var pid int
	for pid == 0 && time.Now().Before(deadline) {
		if data, err := os.ReadFile(file); err == nil {
			fmt.Sscan(string(data), &pid)
		}
	}
	if got := status(t, flight.Claim(pid)); got != 9 {
		t.Errorf("exit status %d", got)
	}
}

func TestStartFails(t *testing.T) {
	table := New()
	defer table.Close()
	if _, _, err := table.Start(exec.Command("/no/such/program")); err == nil {
		t.Error("a program that is missing was started")
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.flights)+len(table.waiting) > 0 {
		t.Errorf("left: %v, %v", table.flights, table.waiting)
	}
}
