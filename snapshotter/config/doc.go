// Package config is the configuration file of coffer-snapshotter: TOML, laid over complete defaults, with every fault
// reported at once. default.toml is the commented form of the defaults; a test holds the two together.
package config
