// Package config is the TOML file of the runtime handler: what it may say, its defaults, and its faults.
//
// A file is decoded over the preset that it names (Default, unless it does), then the drop-ins beside it (<file>.d/*.toml, in
// lexical order) over that; an unknown key is an error, because a misspelt key that is silently ignored is a security setting that is silently off.
// Validate names all faults at once. The package reads files and nothing else of the machine: whether QEMU is really
// there, for example, is found out by the driver when a pod starts.
//
// Annotations of a pod pass through Config.Pod, an allow-list. None of them can loosen security: the most that a pod
// can ask for is more CPUs and memory, up to the limits of this file, and its own initdata, which is measured.
package config
