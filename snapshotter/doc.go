// Package snapshotter is the host's half of guest pull: a containerd snapshotter that hands on image references and
// nothing else. It never fetches, decrypts or unpacks a layer that a guest is to pull, and it opens no connection to a
// registry (a test proves it from the import graph).
//
// # Two halves
//
// Every snapshot is in one of two modes, told apart by a label of our own (LabelMode):
//
//   - ModeReference: an empty record. Prepare of an image layer commits it at once and answers AlreadyExists, so that
//     containerd fetches no layer blob. A container on top of it gets one mount, a read-only bind of a directory
//     without content of the image, whose extra option carries the KataVirtualVolume that tells the shim what the guest
//     is to pull.
//   - ModeOverlay: containerd's own overlay snapshotter on the same database, for images that the host is to unpack
//     (patterns that the admin excluded, and pause images). A container of a guest that stands on such layers still gets the
//     mount of ModeReference, as soon as containerd can tell its runtime.
//
// The mode of a layer is decided by Rules.decide, with one exception (WithPauseImages):
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
// # Node-default mode
//
// Whoever pulls often does not say for which runtime: the kubelet does not, so that containerd unpacks everything with its
// default snapshotter. For that place the program has a second snapshotter (NodeDefault), under a name and with a state
// of its own. It decides image by image, from manifest and configuration in containerd's content store, which are there
// before the first layer is prepared:
//
//	an encrypted layer, LabelGuestOnly, or a pattern of the admin's  -> reference-only, no layer is fetched
//	anything else                                                    -> overlay
//
// Nothing else is done with the reference-only layers of this snapshotter. A container of Coffer's handler does not stand
// on them: its handler names the first snapshotter, in which containerd then makes all layers of the image anew, as
// references, whether the host has unpacked it or not. So the same image runs in both worlds, and a guest never sees a
// file that the host unpacked. And whoever asks here for a root file system on a reference-only layer is a runtime of the
// host: it gets an error that says what to do, at the creation of the container.
//
// One snapshotter for both was the other way. It cannot tell who asks: a container's snapshot is prepared before
// containerd records the container, with no label. One mount would have to serve runc and the shim, an error could come
// only when a container starts, and containers of guests would hold on to layers that images of the host need, as follows.
//
// containerd asks for a layer once, whatever image it belongs to. Where an image for guests came first, an image for the
// host with the same lower layers would lie on a hole. Its pull fails with errdefs.ErrUnavailable, and meanwhile
// containerd is made to forget the layers in the way (Forgetter), so that the next try, the kubelet's or the user's, has
// them fetched. Nothing stands on them, so they can always go.
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
// When containerd asks for the mounts to start a container, it has recorded the container, and then it knows better: by the
// name of the container's image the volume gets the digest of the manifest that this host resolved, so that a guest never
// resolves a tag again. And a container of a runtime of this host is refused there.
//
// # What the host sees of a container's root
//
// containerd looks up users and groups in the root. The directory therefore has a passwd and a group file with the names
// that the image's configuration uses, and numbers that stand for them (package hostroot); the guest looks the names up
// in the image. The configuration is asked of containerd (package images) when the container's snapshot is made, and
// only then: Mounts and everything after a restart work from what was written. Where containerd does not answer, only
// numeric and well-known users can be used. A directory is named by its content, shared by all snapshots with the same,
// and removed by Cleanup after the last of them.
//
// CRI mounts the snapshot of an image volume on the host and hands the shim nothing but the path. So its directory also
// holds the volume document.
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
