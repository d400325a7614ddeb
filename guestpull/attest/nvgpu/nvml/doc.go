// Package nvml answers the questions of package nvgpu with NVIDIA's management library. It needs cgo, and so is built with the tag nvml
// only, for the program coffer-gpu-evidence.
//
// The library's functions are bound when they are first called, and a missing one would end the program. So each that older drivers lack
// is looked up before.
package nvml
