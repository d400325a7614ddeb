// Package sealed is the form of sealed secrets, the one of Confidential Containers, version 0.1.0: what stands in a variable in a
// secret's place, and what only an attested guest can turn into the secret.
//
//	sealed.<base64url of the JWS header>.<base64url of the payload>.<base64url of the signature>
//
// The payload is JSON: a [Vault] names a resource of a key broker, an [Envelope] is a secret that a key of a key management service opens.
// The signature is ES256 over the two parts before it; the header's kid says where the public key is. Tools older than the signature wrote
// the words fakejwsheader and fakesignature in the places of header and signature: such a secret is unsigned, and anybody can make one.
package sealed
