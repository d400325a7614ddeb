package bundle

import (
	"strings"
)

// annotationTermination is the path at which the container sees the file for its last message.
const annotationTermination = "io.kubernetes.container.terminationMessagePath"

// prefixCDI begins the annotations that name CDI devices.
const prefixCDI = "cdi.k8s.io/"

// annotationPrefixes are what a guest may learn of a container's annotations: what Kubernetes' runtimes say about
// the container, what Kata's policies look at, which devices belong to it, and where it leaves its last words.
var annotationPrefixes = []string{
	"io.kubernetes.cri.", "io.kubernetes.cri-o.", "io.katacontainers.", prefixCDI,
	annotationTermination,
}

// metadataPrefixes are what a snapshotter may say about an image.
var metadataPrefixes = []string{"containerd.io/snapshot/", "io.coffer/"}

// pick returns the entries whose keys have one of the prefixes and notes the others under the name of the map.
func pick(name string, in map[string]string, prefixes []string, d *dropped) map[string]string {
	out := make(map[string]string, len(in))
	for key, value := range in {
		if hasPrefix(key, prefixes) {
			out[key] = value
		} else {
			d.note(name+"["+key+"]", true)
		}
	}
	return out
}

func hasPrefix(key string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}
