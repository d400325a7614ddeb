package boot

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// maxLogValue bounds one field of a log line: the console is slow, and a value may come from the host or an image.
const maxLogValue = 256

// setUpLog sends the guest's log to the console as short lines.
func setUpLog(level log.Level) {
	log.L.Logger.SetLevel(level)
	log.L.Logger.SetFormatter(lineFormatter{})
	log.L.Logger.SetOutput(os.Stderr)
}

// lineFormatter writes `level message key=value`, with the fields in a fixed order and no time: the host stamps the
// lines of the console itself.
type lineFormatter struct{}

// Format implements logrus.Formatter.
func (lineFormatter) Format(e *logrus.Entry) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s%s %s", prefix, e.Level, clean(e.Message))
	keys := make([]string, 0, len(e.Data))
	for key := range e.Data {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(&b, " %s=%s", clean(key), clean(fmt.Sprint(e.Data[key])))
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// clean bounds a value and keeps it on one line, so that nobody can forge a line of the guest's log.
func clean(value string) string {
	if len(value) > maxLogValue {
		value = value[:maxLogValue] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, value)
}
