//! The modules of each crate use one another in one direction: no circle, at any level.
//!
//! Read from the sources: what `use` declarations and paths name, followed through re-exports. A
//! module and those in it may use each other; its tests may use anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree, Visibility};

/// The path of a module or of an item, from the root of its crate.
type Name = Vec<String>;

/// Which of the modules in one module use which others, and the files in which they do.
type Arrows<'a> = BTreeMap<(&'a str, &'a str), BTreeSet<String>>;

/// A crate's modules, and the paths that each of them names.
#[derive(Default)]
struct Crate {
    named: BTreeMap<Name, Vec<Name>>,
    /// Where an item that a module re-exports comes from.
    re_exports: BTreeMap<Name, Name>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut found = Self::default();
        found.read_folder(src, &mut Vec::new());
        found
    }

    fn read_folder(&mut self, folder: &Path, module: &mut Name) {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let is_root = matches!(name.as_str(), "mod" | "lib" | "main");
            if path.is_dir() {
                module.push(name);
                self.read_folder(&path, module);
                module.pop();
            } else if path.extension().is_some_and(|ending| ending == "rs") && name != "tests" {
                let mut own = module.clone();
                own.extend((!is_root).then_some(name));
                self.add(own, &fs::read_to_string(&path).unwrap());
            }
        }
    }

    fn add(&mut self, module: Name, text: &str) {
        let file = syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", module.join("::")));
        let mut finder = Finder { module: module.clone(), named: Vec::new(), public: Vec::new() };
        finder.visit_file(&file);
        self.named.entry(module.clone()).or_default().extend(finder.named);
        for (alias, path) in finder.public {
            self.re_exports.insert([module.as_slice(), &[alias]].concat(), path);
        }
    }

    /// The module that `path` leads to.
    fn module_of(&self, path: &[String]) -> Name {
        let mut path = path.to_vec();
        // Bounded: a re-export of a re-export is followed, a circle of them is not.
        for _ in 0..8 {
            let lengths = (1..=path.len()).find(|&n| self.re_exports.contains_key(&path[..n]));
            let Some(n) = lengths else { break };
            let next = [self.re_exports[&path[..n]].as_slice(), &path[n..]].concat();
            if next == path {
                break;
            }
            path = next;
        }
        while !self.named.contains_key(&path) && !path.is_empty() {
            path.pop();
        }
        path
    }

    /// A line for each circle: the modules in it, and for each arrow the files that draw it.
    fn circles(&self) -> Vec<String> {
        // By the module around them, the modules in it that use each other, and who does.
        let mut levels: BTreeMap<&[String], Arrows<'_>> = BTreeMap::new();
        let known: Vec<(&Name, Name)> = self
            .named
            .iter()
            .flat_map(|(from, paths)| paths.iter().map(move |path| (from, self.module_of(path))))
            .collect();
        for (from, to) in &known {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(common), to.get(common)) {
                let arrows = levels.entry(&from[..common]).or_default();
                let who = format!("{} uses {}", from.join("::"), to.join("::"));
                arrows.entry((a, b)).or_default().insert(who);
            }
        }
        let mut circles = Vec::new();
        for (level, arrows) in &levels {
            let graph: DiGraphMap<&str, ()> = arrows.keys().map(|&(a, b)| (a, b, ())).collect();
            for circle in tarjan_scc(&graph).into_iter().filter(|modules| modules.len() > 1) {
                let within = |(a, b): &&(&str, &str)| circle.contains(a) && circle.contains(b);
                let who = arrows.keys().filter(within).flat_map(|arrow| &arrows[arrow]);
                let who: Vec<&str> = who.map(String::as_str).collect();
                let place = ["crate".to_owned()].iter().chain(*level).cloned().collect::<Vec<_>>();
                circles.push(format!(
                    "in {}: {}: {}",
                    place.join("::"),
                    circle.join(", "),
                    who.join("; ")
                ));
            }
        }
        circles
    }
}

/// Finds the paths that a file names.
struct Finder {
    module: Name,
    named: Vec<Name>,
    public: Vec<(String, Name)>,
}

impl Finder {
    /// `path` from the root of the crate, if it leads into this crate.
    fn absolute(&self, path: &[String]) -> Option<Name> {
        let ups = path.iter().take_while(|word| *word == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([&self.module, &path[1..]].concat()),
            "super" => {
                let above = self.module.len().checked_sub(ups)?;
                Some([&self.module[..above], &path[ups..]].concat())
            }
            _ => None,
        }
    }

    fn use_tree(&mut self, tree: &UseTree, path: &mut Name, public: bool) {
        let end = |this: &mut Self, name: &str, alias: &str| {
            let whole = match name {
                "self" => path.clone(),
                name => [path.as_slice(), &[name.to_owned()]].concat(),
            };
            let own = || Some([&this.module, whole.as_slice()].concat());
            // `use child::Item` is relative in a re-export.
            if let Some(found) = this.absolute(&whole).or_else(|| own().filter(|_| public)) {
                if public {
                    this.public.push((alias.to_owned(), found.clone()));
                }
                this.named.push(found);
            }
        };
        match tree {
            UseTree::Name(name) => end(self, &name.ident.to_string(), &name.ident.to_string()),
            UseTree::Rename(it) => end(self, &it.ident.to_string(), &it.rename.to_string()),
            UseTree::Glob(_) => {
                if let Some(found) = self.absolute(path) {
                    self.named.push(found);
                }
            }
            UseTree::Path(step) => {
                path.push(step.ident.to_string());
                self.use_tree(&step.tree, path, public);
                path.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, path, public);
                }
            }
        }
    }

    /// The paths in what a macro is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path = Vec::new();
        for token in tokens {
            match token {
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Punct(mark) if mark.as_char() == ':' => {}
                other => {
                    self.named.extend(self.absolute(&std::mem::take(&mut path)));
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.named.extend(self.absolute(&path));
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !item.attrs.iter().any(is_for_tests) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let public = !matches!(item.vis, Visibility::Inherited);
        if !item.attrs.iter().any(is_for_tests) {
            self.use_tree(&item.tree, &mut Vec::new(), public);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Name = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.named.extend(self.absolute(&words).filter(|_| words.len() > 1));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        self.tokens(mac.tokens.clone());
        visit::visit_macro(self, mac);
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else { return false };
    list.path.is_ident("cfg")
        && list.tokens.to_string().split(['(', ')', ',', ' ']).any(|w| w == "test")
}

#[rstest::rstest]
#[case("../vmm/src")]
#[case("../vmm/qmp/src")]
#[case("src")]
fn modules_use_one_another_in_one_direction(#[case] src: &str) {
    let found = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(src));
    assert!(found.named.len() > 5, "only {} modules were found in {src}", found.named.len());
    let circles = found.circles();
    assert!(circles.is_empty(), "circles between modules:\n{}", circles.join("\n"));
}

#[test]
fn circles_are_found_and_printed() {
    let circles = |modules: &[(&str, &str)]| {
        let mut found = Crate::default();
        for (module, text) in modules {
            let name = module.split("::").filter(|word| !word.is_empty()).map(str::to_owned);
            found.add(name.collect(), text);
        }
        found.circles()
    };
    let b = ("b", "use super::a::A; mod tests {}");
    let by_use = "in crate: b, a: a uses b; b uses a";
    assert_eq!(circles(&[("a", "use crate::b::B;"), b]), [by_use]);
    assert_eq!(circles(&[("a", "fn f() { crate::b::g() }"), b]), [by_use]);
    assert_eq!(circles(&[("a", "fn f() { assert!(x, \"{}\", crate::b::G) }"), b]), [by_use]);
    // Through a re-export of the root.
    let root = ("", "mod a; mod b; pub use b::B;");
    assert_eq!(circles(&[root, ("a", "use crate::B;"), b]), [by_use]);
    // Deeper: `a::x` and `a::y` are siblings.
    let deep = [("a::x", "use super::y::Y;"), ("a::y", "use crate::a::x::X;")];
    assert_eq!(circles(&deep), ["in crate::a: y, x: a::x uses a::y; a::y uses a::x"]);
    // One way, a parent and its child, and tests are no circles.
    assert!(circles(&[("a", "use crate::b::B;"), ("b", "")]).is_empty());
    assert!(circles(&[("a", "mod c;"), ("a::c", "use super::A;")]).is_empty());
    let tests = "#[cfg(test)] mod tests { use crate::a::A; }";
    assert!(circles(&[("a", "use crate::b::B;"), ("b", tests)]).is_empty());
}
