package policy

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The origins of a process's parts; see package container/origin.
const (
	fromImage   = "image"
	fromEngine  = "engine"
	fromHost    = "host"
	fromRestore = "restored"
)

// enginePath is the PATH that containerd and its like give to a process whose image has none.
const enginePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// checkProcess binds a process to its image.
func checkProcess(p *agentpolicy.Process) string {
	switch {
	case p == nil:
		return "the process is not known"
	case p.ArgsOrigin != fromImage:
		return "command and arguments are not those of the verified image"
	case p.CwdOrigin != fromImage:
		return "the working directory is not that of the verified image"
	case p.UserOrigin != fromImage:
		return "the user is not that of the verified image"
	}
	for _, v := range p.Env {
		switch v.Origin {
		case fromImage, fromRestore:
			continue
		case fromEngine:
			if engineVariable(v) {
				continue
			}
		case fromHost:
			if kubernetesVariable(v.Name, v.Value) {
				continue
			}
		}
		return "variable " + shortName(v.Name) + " is neither the verified image's nor one that Kubernetes gives to every container"
	}
	return ""
}

// shortName is what the host has sent itself, kept short.
func shortName(name string) string {
	if len(name) > 64 {
		name = name[:64] + "..."
	}
	return strconv.Quote(name)
}

var (
	hostName = lazyregexp.New(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)
	// A service's variables are in the form of Docker links, with its name in capitals.
	serviceVariable = lazyregexp.New(`^[A-Z_][A-Z0-9_]{0,62}_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]{1,15})?|PORT|PORT_[0-9]{1,5}_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)$`)
	link            = lazyregexp.New(`^(tcp|udp|sctp)://(\[[0-9a-fA-F:]+\]|[0-9.]+):[0-9]{1,5}$`)
	protocol        = lazyregexp.New(`^(tcp|udp|sctp)$`)
)

// engineVariable judges what engines add on their own.
func engineVariable(v agentpolicy.Variable) bool {
	switch v.Name {
	case "PATH":
		return v.Value == enginePath
	case "TERM":
		return v.Value == "xterm"
	case "HOSTNAME":
		return hostName.MatchString(v.Value)
	}
	return false
}

// kubernetesVariable judges variables of services, and those that the documentation of Kubernetes' downward API gives such names. Their
// values are addresses, ports and names, never paths, options or programs.
func kubernetesVariable(name, value string) bool {
	switch name {
	case "POD_NAME", "POD_NAMESPACE", "POD_UID", "NODE_NAME", "POD_SERVICE_ACCOUNT", "MY_POD_NAME", "MY_POD_NAMESPACE", "MY_NODE_NAME",
		"MY_POD_SERVICE_ACCOUNT":
		return hostName.MatchString(value)
	case "POD_IP", "HOST_IP", "MY_POD_IP", "MY_HOST_IP":
		return address(value)
	case "POD_IPS", "HOST_IPS":
		for one := range strings.SplitSeq(value, ",") {
			if !address(one) {
				return false
			}
		}
		return true
	}
	if !serviceVariable.MatchString(name) {
		return false
	}
	switch {
	case strings.HasSuffix(name, "_SERVICE_HOST"), strings.HasSuffix(name, "_ADDR"):
		return address(value)
	case strings.HasSuffix(name, "_PROTO"):
		return protocol.MatchString(value)
	case strings.Contains(name, "_SERVICE_PORT"), strings.HasSuffix(name, "_TCP_PORT"), strings.HasSuffix(name, "_UDP_PORT"), strings.HasSuffix(name, "_SCTP_PORT"):
		n, err := strconv.ParseUint(value, 10, 16)
		return err == nil && n > 0
	default:
		return link.MatchString(value)
	}
}

func address(text string) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.Zone() == ""
}
