// Package imagetest holds the owner's sealing and the guest's pulling together, with honest and evil registries between
// them.
package imagetest
