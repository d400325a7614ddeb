package runc

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
)

// Bounds on what of runc's log is read and passed on, in bytes.
const (
	maxLog     = 256 << 10
	maxMessage = 512
)

// lastError returns the last message of level error in runc's log, empty when there is none.
func lastError(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	message := ""
	lines := bufio.NewScanner(io.LimitReader(f, maxLog))
	lines.Buffer(nil, maxLog)
	for lines.Scan() {
		var line struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &line) == nil && (line.Level == "error" || line.Level == "fatal") {
			message = line.Msg
		}
	}
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	return message
}
