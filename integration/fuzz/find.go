package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// target is one fuzz function.
type target struct {
	// dir is the folder of its package; go test runs there, so that it may belong to a module of its own.
	dir, name string
}

// String is the package's folder and the function's name.
func (t target) String() string { return filepath.ToSlash(t.dir) + "." + t.name }

// find reads all test files below root and returns their fuzz functions in order.
func find(root string, wanted *regexp.Regexp) ([]target, error) {
	var found []target
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("look for fuzz targets: %w", err)
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || !isTarget(fn) {
				continue
			}
			dir, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			if t := (target{dir: dir, name: fn.Name.Name}); wanted.MatchString(t.String()) {
				found = append(found, t)
			}
		}
		return nil
	})
	slices.SortFunc(found, func(a, b target) int { return strings.Compare(a.String(), b.String()) })
	return found, err
}

// isTarget is true for func FuzzX(f *testing.F).
func isTarget(fn *ast.FuncDecl) bool {
	rest, named := strings.CutPrefix(fn.Name.Name, "Fuzz")
	if first, _ := utf8.DecodeRuneInString(rest); !named || unicode.IsLower(first) {
		return false
	}
	if fn.Recv != nil || len(fn.Type.Params.List) != 1 {
		return false
	}
	pointer, ok := fn.Type.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	kind, ok := pointer.X.(*ast.SelectorExpr)
	return ok && kind.Sel.Name == "F"
}
