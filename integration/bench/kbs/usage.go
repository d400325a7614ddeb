package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is processor time: of the broker's process, and of this one, which is the guests.
type usage struct{ broker, guests time.Duration }

func (u usage) since(before usage) usage {
	return usage{broker: u.broker - before.broker, guests: u.guests - before.guests}
}

// usage returns the processor time that both sides have used so far.
func (b *broker) usage() (usage, error) {
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return usage{}, fmt.Errorf("processor time of the guests: %w", err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.process.Process.Pid))
	if err != nil {
		return usage{}, fmt.Errorf("processor time of the broker: %w", err)
	}
	ticks, err := parseStat(string(stat))
	if err != nil {
		return usage{}, err
	}
	return usage{broker: ticks * clockTick, guests: time.Duration(unix.TimevalToNsec(self.Utime) + unix.TimevalToNsec(self.Stime))}, nil
}

// clockTick is the unit of times in /proc (USER_HZ, the same on all platforms of Linux that we run on).
const clockTick = 10 * time.Millisecond

// parseStat returns utime and stime together: fields 14 and 15 of proc_pid_stat(5), in ticks. The name before them may have any characters.
func parseStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc stat of the broker has %d fields", len(fields))
	}
	var sum uint64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseUint(field, 10, 63)
		if err != nil {
			return 0, fmt.Errorf("/proc stat of the broker: %w", err)
		}
		sum += n
	}
	return time.Duration(sum), nil
}
