// Package nvgpu appraises the evidence of NVIDIA's GPUs (Hopper, Blackwell) and of the switches between them (LS10).
//
// Genuine means: the device's certificate chain leads to NVIDIA's root for devices and is that of the generation which the guest names,
// its key signed the SPDM exchange, the firmware that the certificate was issued for is the one that the report names, and the exchange
// began with this session's nonce. Certificates that NVIDIA revoked are refused, too, as far as the owner keeps its answers (OCSP).
//
// Whether a device's firmware and driver are those that NVIDIA measured is known only with NVIDIA's reference integrity manifests (RIM),
// which the owner keeps as files. With those that fit, every measurement that they name must have one of its values; without them, or once
// their certificates have expired, the executables count as unknown. NVIDIA's verifiers say by a match, and so do we, that the GPU boots
// securely and cannot be debugged: no other part of a report tells.
//
// All devices or none: evidence in which one device is not genuine is no evidence.
//
// NVIDIA's roots are built in. The only other ones are those of Options.TestRoots: whoever sets them believes devices that do not exist.
package nvgpu
