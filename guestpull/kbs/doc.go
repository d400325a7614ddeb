// Package kbs is the guest's client of the key broker: it proves once per pod what the guest is and fetches keys for it.
//
// The client trusts the broker's URL and CA because the caller took them from the measured document, and nothing that the broker sends:
// answers have size limits and a strict shape, and a resource only counts when it opens with the client's own fresh key. It must never
// write a resource, token or session into an error or a log.
//
// A Client's session goes through these states; every call that needs one starts where the state is:
//
//	none -> handshake -> attested -> (token old, or the broker answers 401) -> handshake ...
//
// Handshakes are joined: callers that come while one runs wait for it and share its outcome. Resources are not kept.
package kbs
