// Package tdx appraises quotes of Intel TDX guests: versions 4 and 5, the latter with the bodies of TDX 1.0 and 1.5.
//
// Genuine means: the platform's certificate (PCK) leads to Intel's root, it signed the report of Intel's own quoting enclave, that enclave
// vouches for the attestation key, and the key signed the quote. Evidence is refused beyond appeal, too, where the guest may be debugged
// or profiled by its host, or where an event log does not lead to the quote's runtime registers.
//
// Whether the platform's firmware is up to date is known only with Intel's collateral: TCB information and the quoting enclave's
// identity. Without it, or once it has expired, the hardware counts as unknown.
//
// Library and own code: go-tdx-guest verifies version 4, and its types carry collateral; it knows neither version 5 nor a TCB level
// below the newest nor platforms of a single processor package, so those are ours. What it knows must satisfy both.
package tdx
