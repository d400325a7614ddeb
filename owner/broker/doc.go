// Package broker is the key broker: it challenges guests, has their evidence appraised, and hands resources to those that its policy
// admits, sealed for the key that the evidence vouches for. It speaks protocol 0.4.0 as Trustee's broker does.
//
// It trusts its own token key, its admins' keys and its files; all requests are hostile. Whatever fails, fails towards not releasing:
// an unknown TEE, a policy error, an audit log that cannot be written. Resources never reach logs, errors or the audit log.
//
// A session lives like this; every other order of calls is refused:
//
//	(none) --auth--> challenged --attest--> attesting --good evidence--> attested --end of life--> (none)
//	                                            \-------bad evidence---> (none)
package broker
