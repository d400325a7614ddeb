// Package kbs holds the documents of the key broker protocol (RCAR, version 0.4.0): what a guest says to prove what it is, what a
// broker answers, and how both name and seal a resource. Guest and broker share nothing else.
//
// The package does no I/O and holds no keys. Everything it parses comes from the network, so every parser has a size limit, refuses
// ambiguous JSON (duplicate members, broken Unicode) and copies out only the fields it knows.
//
// One handshake:
//
//	guest  POST /kbs/v0/auth      Request      ->  Challenge, cookie kbs-session-id
//	guest  POST /kbs/v0/attest    Attestation  ->  TokenReply
//	guest  GET  /kbs/v0/resource/<repository>/<type>/<tag>  ->  flattened JWE for the attested key
//
// The evidence is bound to the session and to the guest's fresh key by ReportData.
package kbs
