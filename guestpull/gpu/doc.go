// Package gpu makes NVIDIA GPUs of a guest usable: the duties that NVIDIA's own guest init, NVRC, does before it becomes the agent,
// in its order, with one difference. NVRC lets the GPUs work when a kernel parameter says so; here they work only once this guest,
// GPUs included, was attested to the key broker:
//
//	topology ─▶ modules, firmware, libraries ─▶ fabric ─▶ persistence ─▶ clocks ─▶ CDI specification
//	         ─▶ module loading is locked          (at the guest's start; then, with the first container that has a GPU)
//	         ─▶ attestation ─▶ ready state ─▶ containers get GPUs
//
// Meanwhile health is watched: what the driver reports of GPUs, and daemons that end.
//
// Programs, modules and libraries come from the extension image "gpu", which was checked against a measured hash (see package
// extension), or from the guest's own image. What runs is fixed; of the host come the devices, and they are believed only once
// attested.
//
// A duty that fails ends the list with one error, which whoever creates a container with a GPU gets. The machine stays: containers
// without GPUs do not need them.
//
// The package must never set the ready state before the attestation.
package gpu
