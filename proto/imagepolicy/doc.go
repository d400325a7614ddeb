// Package imagepolicy decides by a containers-policy.json(5) whether an image may run: it reads the policy, finds the
// requirements for an image's name, finds the image's signatures in its registry and judges them.
//
//	policy.json --Parse--> Policy --Check(image)--> requirements of the most specific scope
//	                                                   | sigstoreSigned: for each digest that stands for the image
//	                                                   |   tag sha256-HEX.sig, then referrers -> signature -> key -> claim
//	                                                   | signedBy: for each of them, the lookaside's signature-1, -2, ...
//	                                                   v
//	                                        Verdict, or an error that says what is missing
//
// Guests enforce it before they fetch any layer, and image owners try it with the same code before they roll it out.
//
// What differs from containers-policy.json(5), all of it on the strict side but the last:
//
//   - an image may be known by two digests, its own and that of the index that it was chosen from; a signature of either
//     counts, because the index names the image by its digest;
//   - signatures are found in cosign 3's bundles too;
//   - what cannot be done without asking others (Fulcio, Rekor, other certificates) is read and then refused for the
//     images that it is about, never skipped;
//   - keys are resources of a key broker, or stand in the policy itself: there are no files;
//   - a sigstoreSigned without signedIdentity takes a signature at its word: a name with a tag or a digest must match as
//     matchRepoDigestOrExact has it, a repository's name alone, which is all that cosign writes, must be that of the
//     image, and a signature without any name, like cosign 3's, is one for its digest.
package imagepolicy
