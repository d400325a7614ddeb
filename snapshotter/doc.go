// Package snapshotter is the host's half of guest pull: a containerd snapshotter that hands on image references and
// nothing else. It never fetches, decrypts or unpacks a layer that a guest is to pull, and it opens no connection to a
// registry (a test proves it from the import graph).
//
// # Two modes
//
// Every snapshot is in one of two modes, told apart by a label of our own (LabelMode):
//
//   - ModeReference: an empty record. Prepare of an image layer commits it at once and answers AlreadyExists, so that
//     containerd fetches no layer blob. A container on top of it gets one mount, a read-only bind of an empty
//     directory, whose extra option carries the KataVirtualVolume that tells the shim what the guest is to pull.
//   - ModeOverlay: containerd's own overlay snapshotter on the same database, for images that the host is to unpack
//     (the pause image, patterns that the admin excluded).
//
// The mode of a layer is decided by Rules.decide:
//
//	parent reference-only                      -> reference-only: below it there is nothing to stack an overlay on.
//	                                              If the image is one to pass through, the pull is refused with a
//	                                              clear error instead of giving a container a hollow root.
//	cri.image-ref matches an excluded pattern  -> overlay
//	cri.image-ref is known                     -> reference-only
//	no reference at all                        -> as configured (without_reference), by default reference-only
//
// So all layers of an image are skipped or none is fetched twice: once one layer is reference-only, all above it are.
//
// # Layers without a reference
//
// containerd gives no cri.* labels when it unpacks an image again for another handler while the transfer service is in
// use: the pause image under sandboxer "podsandbox", or an image that another snapshotter had unpacked before. All that
// is known then is the chain ID. The default, reference-only, is right for VM runtimes: our shim and Kata's need no
// root file system of the pause image and take the name of any other image from CRI's own annotation, and no image
// content appears on the host by accident. "passthrough" is right on a node where runc's handler uses this snapshotter
// too; containerd then needs the layer blobs, and says so (missing content, or no key for an encrypted layer) if it
// does not have them.
//
// # Whose reference a layer carries
//
// containerd shares a layer between all images that have the same chain below it, and only the first pull of a chain
// reaches a snapshotter. So a layer may have been brought by an image that merely contains it. Only where the layer was
// the last one of its image (cri.image-layers names no other) is that image's reference put into the volume; otherwise
// the source is volume.DummySource and the shim relies on CRI's annotation, which it must prefer in any case.
//
// # A database that can be lost
//
// What a reference-only layer is about is written into its name: the chain ID, then the reference, the manifest digest
// and so on (layerName). containerd keeps that name in its own database and hands it back as parent or in Stat. When
// our database does not know such a name, the record is made again from the name itself: nothing else has to be asked.
// Overlay snapshots keep a small record file beside their directory and are rebuilt from those when the database is
// gone at start. A database that is there but damaged stops the start with an error that says what to do.
//
// # Crash safety
//
// Everything that containerd relies on happens in one bbolt transaction. Directories are made before the commit and
// removed after it, so that a kill -9 leaves at most directories that no record names; they go at the next start or
// Cleanup.
package snapshotter
