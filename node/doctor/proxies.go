package doctor

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
)

const annotationsExport = "enable_remote_snapshot_annotations"

// proxy finds the proxy plugin by which containerd reaches our snapshotter: the one with its address, else the one with
// its usual name.
func (x *Examination) proxy() (name string, found proxyPlugin, ok bool) {
	if name := x.proxyAt(x.snapshotter.Address); name != "" {
		return name, x.containerd.Proxies[name], true
	}
	found, ok = x.containerd.Proxies["coffer"]
	return "coffer", found, ok
}

// proxyAt finds the proxy plugin with an address; empty where there is none.
func (x *Examination) proxyAt(address string) string {
	for _, name := range slices.Sorted(maps.Keys(x.containerd.Proxies)) {
		if x.containerd.Proxies[name].Address == address {
			return name
		}
	}
	return ""
}

// second is the proxy plugin of our second snapshotter; empty where there is none.
func (x *Examination) second() string {
	if x.snapshotter.NodeDefault.Address == "" {
		return ""
	}
	return x.proxyAt(x.snapshotter.NodeDefault.Address)
}

func checkProxyPlugin(_ context.Context, x *Examination) []Finding {
	if x.containerd == nil {
		return x.unread()
	}
	name, proxy, found := x.proxy()
	if !found {
		return fail("containerd knows no proxy plugin with the snapshotter's address "+x.snapshotter.Address, dropIn)
	}
	all := checkExports(name, proxy, x.snapshotter.Root)
	add := func(f []Finding) { all = append(all, f...) }
	table := "proxy_plugins." + name
	if proxy.Address != x.snapshotter.Address {
		add(fail(fmt.Sprintf("%s.address is %s, and the snapshotter listens on %s", table, proxy.Address, x.snapshotter.Address), "make them the same"))
	}
	others := slices.DeleteFunc(slices.Clone(proxy.Capabilities), func(c string) bool { return c == remapIDs })
	if len(others) > 0 {
		add(fail(fmt.Sprintf("%s has capabilities %s: containerd would fetch layers", table, strings.Join(others, ", ")), "remove them"))
	}
	if !slices.Contains(proxy.Capabilities, remapIDs) {
		add(warn(table+" lacks the capability remap-ids: pods with user namespaces (hostUsers: false) do not start", `set capabilities = ["remap-ids"]`))
	}
	if second := x.second(); second != "" {
		add(checkExports(second, x.containerd.Proxies[second], x.snapshotter.NodeDefault.Root))
		if capabilities := x.containerd.Proxies[second].Capabilities; len(capabilities) > 0 {
			add(fail(fmt.Sprintf("proxy_plugins.%s has capabilities %s: containerd would fetch layers of images for guests", second, strings.Join(capabilities, ", ")), "remove them"))
		}
		table += " and proxy_plugins." + second
	}
	if all == nil {
		return ok(table + ": complete")
	}
	return all
}

// checkExports is about what containerd must know of either snapshotter.
func checkExports(name string, proxy proxyPlugin, root string) (all []Finding) {
	table := "proxy_plugins." + name
	add := func(f []Finding) { all = append(all, f...) }
	if proxy.Type != "snapshot" {
		add(fail(fmt.Sprintf("%s.type is %q", table, proxy.Type), `set it to "snapshot"`))
	}
	if proxy.Exports[annotationsExport] != "true" {
		add(fail(table+".exports lacks "+annotationsExport+": the snapshotter does not learn which image a layer belongs to", `set it to "true"`))
	}
	if exported := proxy.Exports["root"]; exported != root {
		add(warn(fmt.Sprintf("%s.exports.root is %q, and the snapshotter's root is %s: figures of the image file system are wrong", table, exported, root),
			"make them the same"))
	}
	return all
}

// checkUnpacking is about a list that replaces containerd's own as soon as it is there.
func checkUnpacking(_ context.Context, x *Examination) []Finding {
	if x.containerd == nil {
		return x.unread()
	}
	if x.containerd.Plugins.Images.LocalPull {
		return notApplicable("CRI pulls by itself (use_local_image_pull)")
	}
	platform := "linux/" + runtime.GOARCH
	var listed []string
	for _, entry := range x.containerd.Plugins.Transfer.Unpack {
		if strings.HasPrefix(entry.Platform, platform) {
			listed = append(listed, entry.Snapshotter)
		}
	}
	proxy, _, _ := x.proxy()
	for _, name := range []string{proxy, x.second()} {
		if name != "" && !slices.Contains(listed, name) {
			return fail(fmt.Sprintf("the transfer service's unpack_config has no entry for %s on %s: pulls fail with \"no unpack platforms defined\"", name, platform), dropIn)
		}
	}
	if len(listed) == 1 {
		return warn("the transfer service's unpack_config lists no other snapshotter: other pods' images are not unpacked at pull",
			"repeat the entry of the snapshotter that they use, such as overlayfs")
	}
	return ok("the transfer service unpacks for " + strings.Join(listed, ", "))
}
