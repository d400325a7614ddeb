package guestboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/coffer-project/coffer/integration/guestvm"
	"github.com/coffer-project/coffer/shim/transport"
)

var image = guestvm.NewImage("integration/guestboot/testinit")

func TestMain(m *testing.M) {
	code := m.Run()
	image.Remove()
	os.Exit(code)
}

// ask sends testinit a command and returns its answer.
func ask(t *testing.T, host *transport.Serial, command string) string {
	t.Helper()
	answer, err := tryAsk(t, host, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

func tryAsk(t *testing.T, host *transport.Serial, command string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), guestvm.Timeout)
	defer cancel()
	conn, err := host.Dial(ctx, 2)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && len(answer) == 0 {
		err = errors.New("empty answer")
	}
	return string(answer), err
}
