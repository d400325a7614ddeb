package main

import (
	"fmt"
	"slices"
	"strings"
)

// generatorVersion names what the generator makes; whoever changes its output must raise it, so that caches are made anew.
const generatorVersion = 1

// The ways in which layers are packed. The encoder decides how dear a layer is to unpack, so results name it.
const (
	gzipGo  = "Go compress/gzip, default level"
	zstdGo  = "klauspost/compress zstd, default level"
	notAny  = "none"
	quickBy = 100
)

// imageSpec describes an image to generate.
type imageSpec struct {
	Name    string
	Encoder string
	Layers  []layerSpec
}

// layerSpec describes a layer. Bytes is the sum of file sizes, reached to within one file.
type layerSpec struct {
	Content string // of content.go
	Bytes   int64
	// Mean is the mean size of files in bytes; 0 means a single file.
	Mean int64
}

func allImages() []imageSpec {
	app := []layerSpec{}
	for _, mb := range []int64{100, 40, 43, 43, 11, 30, 2} {
		app = append(app, layerSpec{Content: contentApp, Bytes: mb * 1e6, Mean: 45e3})
	}
	var small, model []layerSpec
	for range 4 {
		small = append(small, layerSpec{Content: contentText, Bytes: 25e6, Mean: 2e3})
		model = append(model, layerSpec{Content: contentModel, Bytes: 512 << 20})
	}
	return []imageSpec{
		{Name: "app-gzip", Encoder: gzipGo, Layers: app},
		{Name: "app-zstd", Encoder: zstdGo, Layers: app},
		{Name: "small-gzip", Encoder: gzipGo, Layers: small},
		{Name: "model-gzip", Encoder: gzipGo, Layers: []layerSpec{{Content: contentModel, Bytes: 512 << 20}}},
		{Name: "model-tar", Encoder: notAny, Layers: model},
	}
}

func imageNames() string {
	var names []string
	for _, spec := range allImages() {
		names = append(names, spec.Name)
	}
	return strings.Join(names, ", ")
}

// chooseImages takes images by their names; none means all. Quick ones are a hundredth of the size.
func chooseImages(names []string, quick bool) ([]imageSpec, error) {
	var chosen []imageSpec
	for _, spec := range allImages() {
		if len(names) > 0 && !slices.Contains(names, spec.Name) {
			continue
		}
		chosen = append(chosen, spec)
	}
	if quick {
		shrink(chosen)
	}
	if want := max(len(names), 1); len(names) > 0 && len(chosen) != want {
		return nil, fmt.Errorf("--images %s: the images are %s, each to be named once", strings.Join(names, ","), imageNames())
	}
	return chosen, nil
}

// shrink makes images small enough for tests of the benchmark.
func shrink(specs []imageSpec) {
	for i := range specs {
		specs[i].Name += "-quick"
		specs[i].Layers = slices.Clone(specs[i].Layers)
		for j := range specs[i].Layers {
			specs[i].Layers[j].Bytes /= quickBy
		}
	}
}

func (s imageSpec) packing() string {
	switch s.Encoder {
	case gzipGo:
		return "+gzip"
	case zstdGo:
		return "+zstd"
	}
	return ""
}
