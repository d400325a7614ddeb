// Command testprogram is what runs in the images that the conformance suite expects beside busybox: a web server called
// nginx or httpd, a setuid program called nonewprivs, and pause. Its own name says which one it is.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	name := filepath.Base(os.Args[0])
	if err := run(name); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(name string) error {
	switch name {
	case "nonewprivs":
		fmt.Println("Effective uid:", os.Geteuid())
		return nil
	case "pause":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
		<-end
		return nil
	case "nginx", "httpd":
		port := "80"
		if len(os.Args) > 1 {
			port = os.Args[1]
		}
		return serve(name, port)
	}
	return errors.New("called by an unknown name")
}

// serve answers every request on the port with 200. It speaks HTTP by hand: the package that does it well is many times
// the size of this program, and every pod of the suite unpacks it anew.
func serve(name, port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	// Written once the port is open: the suite takes the file for a sign of life.
	pid := "/var/run/" + name + ".pid"
	if err := os.WriteFile(pid, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return err
	}
	fmt.Println(name + " serves on port " + port)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(conn, name)
	}
}

// answer reads one request's head and ends the connection.
func answer(conn net.Conn, name string) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	var head []byte
	buf := make([]byte, 4096)
	for !strings.Contains(string(head), "\r\n\r\n") && len(head) < 64<<10 {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		head = append(head, buf[:n]...)
	}
	body := "<h1>Welcome to " + name + "</h1>\n"
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: "+
		strconv.Itoa(len(body))+"\r\n\r\n"+body)
}
