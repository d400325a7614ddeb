// Package imagetest holds the owner's sealing and the guest's pulling together, with honest and evil registries between
// them, and against ocicrypt and skopeo as the peers that both must get along with.
package imagetest
