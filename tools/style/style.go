// Package style holds the rules of the project's style that a machine can
// check. Each rule is a function from a parsed package to its violations, and
// each has a fixture under testdata that breaks it: a check that cannot fail
// is no check.
package style

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The limits of length, in lines.
const (
	maxFunc = 70
	maxFile = 600
)

// A pkg is one directory's Go files.
type pkg struct {
	dir   string // relative to the tree, with slashes: "device/nbd"
	fset  *token.FileSet
	files map[string]*ast.File // by path
}

// A rule finds what breaks it in a package.
type rule func(p *pkg) []string

// rules are all rules, by the name of their fixture.
var rules = map[string]rule{
	"imports":  imports,
	"gostmt":   goStatements,
	"errtext":  errorText,
	"sleep":    sleeps,
	"length":   length,
	"comments": comments,
	"names":    names,
	"pure":     pure,
}

// load parses every package below a root. Fixtures and hidden directories are
// no part of the tree.
func load(root string) ([]*pkg, error) {
	packages := map[string]*pkg{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("walk the tree: %w", err)
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "volume" || d.Name() == "mnt") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		return addFile(packages, root, path)
	})
	return slices.Collect(values(packages)), err
}

// values iterates over a map's values.
func values(m map[string]*pkg) func(func(*pkg) bool) {
	return func(yield func(*pkg) bool) {
		for _, p := range m {
			if !yield(p) {
				return
			}
		}
	}
}

// addFile parses one file into the package of its directory.
func addFile(packages map[string]*pkg, root, path string) error {
	dir, err := filepath.Rel(root, filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("place %s in the tree: %w", path, err)
	}
	dir = filepath.ToSlash(dir)
	if packages[dir] == nil {
		packages[dir] = &pkg{dir: dir, fset: token.NewFileSet(), files: map[string]*ast.File{}}
	}
	p := packages[dir]
	file, err := parser.ParseFile(p.fset, path, nil, parser.ParseComments)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	p.files[path] = file
	return nil
}

// isTest tells files that only tests are built from. The end-to-end packages
// and the tools are programs of the tests, but written as the rest.
func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

// at prints a violation with its place.
func (p *pkg) at(n ast.Node, format string, args ...any) string {
	return fmt.Sprintf("%s: %s", p.fset.Position(n.Pos()), fmt.Sprintf(format, args...))
}

// never lists what a package must not import: whatever is above it, and what
// it is not to know. The I/O path cannot be reached from reclaim, the
// front-ends do not know how anything is stored, and the shards know neither
// sockets nor files. A name stands for all packages below it, on both sides,
// unless a longer one does.
var never = map[string][]string{
	"inject":     {"disk", "meta", "journal", "replica", "shard", "reclaim", "device", "control"},
	"disk":       {"meta", "journal", "replica", "shard", "reclaim", "device", "control"},
	"aside":      {"disk", "meta", "journal", "replica", "shard", "reclaim", "device", "control"},
	"meta":       {"journal", "replica", "shard", "reclaim", "device", "control"},
	"journal":    {"replica", "shard", "reclaim", "device", "control"},
	"replica":    {"shard", "device", "control"},
	"reclaim":    {"replica", "shard", "device", "control"},
	"shard":      {"device/nbd", "device/ublk", "control", "os", "net", "github.com/dgraph-io"},
	"device":     {"device/nbd", "device/ublk", "control"},
	"device/nbd": {"disk", "meta", "journal", "replica", "shard", "reclaim", "control"},
	"control":    {"disk", "meta", "journal", "replica", "shard", "reclaim"},
}

// forbidden is what a directory's package must not import.
func forbidden(dir string) []string {
	for dir != "." {
		if list, ok := never[dir]; ok {
			return list
		}
		dir = filepath.ToSlash(filepath.Dir(dir))
	}
	return nil
}

// imports checks the import direction of what is built into the program.
func imports(p *pkg) []string {
	var found []string
	top, _, _ := strings.Cut(p.dir, "/")
	for path, file := range p.files {
		if isTest(path) {
			continue
		}
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			imported = strings.TrimPrefix(imported, "trivet/")
			for _, above := range forbidden(p.dir) {
				if imported == above || strings.HasPrefix(imported, above+"/") {
					found = append(found, p.at(spec, "%s must not import %s", p.dir, imported))
				}
			}
			if top != "perf" && top != "e2e" && (imported == "perf" || strings.HasPrefix(imported, "e2e")) {
				found = append(found, p.at(spec, "%s must not import the tests' %s", p.dir, imported))
			}
		}
	}
	return found
}

// goStatements: goroutines are started by functions named start…, so that one
// search finds them all. Tests may start their own clients.
func goStatements(p *pkg) []string {
	var found []string
	p.eachFunc(func(path string, f *ast.FuncDecl) {
		if isTest(path) || strings.HasPrefix(strings.ToLower(f.Name.Name), "start") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				found = append(found, p.at(g, "go statement in %s: only functions named start… have them", f.Name.Name))
			}
			return true
		})
	})
	return found
}

// errorText: nothing decides by the words of an error.
func errorText(p *pkg) []string {
	return p.calls(func(path, call string, n *ast.CallExpr) string {
		if isTest(path) || !slices.Contains([]string{"strings.Contains", "strings.HasPrefix", "strings.HasSuffix", "strings.EqualFold"}, call) {
			return ""
		}
		for _, arg := range n.Args {
			if inner, ok := arg.(*ast.CallExpr); ok {
				if s, ok := inner.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Error" && len(inner.Args) == 0 {
					return "an error is matched by its text"
				}
			}
		}
		return ""
	})
}

// sleeps: a test that sleeps is slow when it passes and flaky when it does not.
func sleeps(p *pkg) []string {
	return p.calls(func(path, call string, n *ast.CallExpr) string {
		if call == "time.Sleep" {
			return "time.Sleep: wait for the event, or use a timer that a context ends"
		}
		return ""
	})
}

// length: what does not fit on a screen or two has more than one idea.
func length(p *pkg) []string {
	var found []string
	for path, file := range p.files {
		if lines := p.fset.Position(file.End()).Line; lines > maxFile && !isTest(path) {
			found = append(found, fmt.Sprintf("%s: %d lines, at most %d", path, lines, maxFile))
		}
	}
	p.eachFunc(func(path string, f *ast.FuncDecl) {
		lines := p.fset.Position(f.End()).Line - p.fset.Position(f.Pos()).Line + 1
		if lines > maxFunc && !isTest(path) {
			found = append(found, p.at(f, "%s has %d lines, at most %d", f.Name.Name, lines, maxFunc))
		}
	})
	return found
}

// comments: every package and every exported name is documented.
func comments(p *pkg) []string {
	var found []string
	documented, built := false, false
	for path, file := range p.files {
		if isTest(path) {
			continue
		}
		built = true
		documented = documented || file.Doc != nil
		for _, decl := range file.Decls {
			found = append(found, p.undocumented(decl)...)
		}
	}
	if built && !documented {
		found = append(found, p.dir+": no package comment directly above 'package'")
	}
	return found
}

// undocumented lists the exported names of a declaration that have no comment.
func (p *pkg) undocumented(decl ast.Decl) []string {
	var found []string
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
			found = append(found, p.at(d, "%s has no comment", d.Name.Name))
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			found = append(found, p.undocumentedSpec(d, spec)...)
		}
	}
	return found
}

// undocumentedSpec handles types, constants and variables; a comment on their
// group is enough.
func (p *pkg) undocumentedSpec(d *ast.GenDecl, spec ast.Spec) []string {
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
			return []string{p.at(s, "%s has no comment", s.Name.Name)}
		}
	case *ast.ValueSpec:
		if s.Names[0].IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
			return []string{p.at(s, "%s has no comment", s.Names[0].Name)}
		}
	}
	return nil
}

// exportedReceiver tells whether a method belongs to an exported type.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil {
		return true
	}
	name := ""
	ast.Inspect(f.Recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && name == "" {
			name = id.Name
		}
		return true
	})
	return ast.IsExported(name)
}

// names: words that say nothing about what a thing is.
func names(p *pkg) []string {
	var found []string
	base := filepath.Base(p.dir)
	if slices.Contains([]string{"util", "utils", "types", "common", "helpers", "misc", "pkg"}, base) {
		found = append(found, p.dir+": a package is named for what it does")
	}
	check := func(id *ast.Ident) {
		for _, word := range []string{"Manager", "Helper", "Proxy"} {
			if strings.HasSuffix(id.Name, word) {
				found = append(found, p.at(id, "%s: a noun for the thing itself, not %s", id.Name, word))
			}
		}
	}
	for _, file := range p.files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch d := n.(type) {
			case *ast.TypeSpec:
				check(d.Name)
			case *ast.FuncDecl:
				if name := d.Name.Name; len(name) > 3 && strings.HasPrefix(name, "Get") && ast.IsExported(name[3:]) {
					found = append(found, p.at(d, "%s: no Get in names", name))
				}
			}
			return true
		})
	}
	return found
}

// pureMark is the directive that declares a file part of a core: no clock, no
// goroutine, no random numbers, no locks to wait for, no I/O.
const pureMark = "//trivet:pure"

// pure checks the files that declare themselves to be cores.
func pure(p *pkg) []string {
	var found []string
	for _, file := range p.files {
		if !marked(file) {
			continue
		}
		for _, spec := range file.Imports {
			switch path, _ := strconv.Unquote(spec.Path.Value); path {
			case "os", "net", "math/rand", "math/rand/v2", "syscall", "golang.org/x/sys/unix":
				found = append(found, p.at(spec, "a core must not import %s", path))
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch c := n.(type) {
			case *ast.GoStmt:
				found = append(found, p.at(c, "a core starts no goroutine"))
			case *ast.CallExpr:
				if slices.Contains([]string{"time.Now", "time.Since", "time.After", "time.NewTimer", "time.AfterFunc"}, callee(c)) {
					found = append(found, p.at(c, "a core has no clock: %s", callee(c)))
				}
			}
			return true
		})
	}
	return found
}

// marked tells whether a file declares itself to be part of a core.
func marked(file *ast.File) bool {
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if comment.Text == pureMark {
				return true
			}
		}
	}
	return false
}

// eachFunc visits the declared functions.
func (p *pkg) eachFunc(visit func(path string, f *ast.FuncDecl)) {
	for path, file := range p.files {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				visit(path, f)
			}
		}
	}
}

// calls visits the calls of 'package.Function' and collects what is said.
func (p *pkg) calls(check func(path, call string, n *ast.CallExpr) string) []string {
	var found []string
	for path, file := range p.files {
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if said := check(path, callee(call), call); said != "" {
					found = append(found, p.at(call, "%s", said))
				}
			}
			return true
		})
	}
	return found
}

// callee prints 'package.Function' for such a call, "" for others.
func callee(call *ast.CallExpr) string {
	if s, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}
