// Package nvgpu asks the NVIDIA driver about the guest's GPUs: which there are, in which mode, and for the evidence of each.
//
// NVIDIA's library (NVML) is C and needs the C library's loader, which the guest's first process must do without. So a program of its own
// (coffer-gpu-evidence, of package nvgpu/helper) asks the library, and lies in the image of the driver. Each question is one run of it:
// one line of JSON on standard input, one on standard output, and the end. A question has a deadline, an answer a limit, and an answer
// that is not exactly what was asked for is an error: the program has handled what GPUs and their drivers wrote.
//
// A guest without GPUs starts nothing of this.
package nvgpu
