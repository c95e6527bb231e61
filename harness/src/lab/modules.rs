//! Kernel modules: which ones a lab needs, their dependencies, and the order to load them in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lzma_rust2::XzReader;
use object::{Object, ObjectSection};
use thiserror::Error;

/// Modules of every lab: KVM, shared folders, and what VMMs use. One that is not in the tree is built in,
/// or is missed when it is used.
pub const ALWAYS: [&str; 9] = [
    "kvm_amd",
    "kvm_intel",
    "9pnet_virtio",
    "9p",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "loop",
    "overlay",
];

/// Modules for devices that are passed through.
pub const PASS_THROUGH: [&str; 2] = ["vfio_iommu_type1", "vfio_pci"];

/// Modules for memory that outlives a restart of the kernel, and its file system.
pub const KEPT_MEMORY: [&str; 4] = ["nd_e820", "nd_pmem", "crc32c_generic", "ext4"];

/// Returns the names of the modules that a lab loads.
pub fn wanted(passes_through: bool, keeps_memory: bool) -> Vec<&'static str> {
    let pass_through = if passes_through { &PASS_THROUGH[..] } else { &[] };
    let kept_memory = if keeps_memory { &KEPT_MEMORY[..] } else { &[] };
    [&ALWAYS[..], pass_through, kept_memory].concat()
}

/// A module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF object.
    pub object: Vec<u8>,
}

/// Why modules cannot be loaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// A file or folder cannot be read.
    #[error("cannot read kernel module {}: {source}", .path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The file is not a module.
    #[error("cannot read kernel module {}: {why}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A module depends on one that is not there.
    #[error("kernel module {name} depends on {missing}, which is not in {}", .tree.display())]
    Missing {
        /// The module.
        name: String,
        /// The one that it depends on.
        missing: String,
        /// The tree of modules.
        tree: PathBuf,
    },
}

/// Returns those of `wanted` that are in `tree`, and all that they depend on, each after its own
/// dependencies.
pub fn in_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let mut order = Order { tree, files: files(tree)?, seen: BTreeSet::new(), modules: Vec::new() };
    for name in wanted {
        if order.files.contains_key(*name) {
            order.add(name)?;
        }
    }
    Ok(order.modules)
}

struct Order<'a> {
    tree: &'a Path,
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = &self.files[name];
        let object = read(path)?;
        for needed in dependencies(path, &object)? {
            if !self.files.contains_key(&needed) {
                let (name, tree) = (name.to_owned(), self.tree.to_owned());
                return Err(ModuleError::Missing { name, missing: needed, tree });
            }
            self.add(&needed)?;
        }
        self.modules.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

/// The files of the modules in `tree`, by name.
fn files(tree: &Path) -> Result<BTreeMap<String, PathBuf>, ModuleError> {
    let unreadable = |path: &Path, source| ModuleError::Unreadable { path: path.into(), source };
    let mut files = BTreeMap::new();
    let mut folders = vec![tree.join("kernel")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| unreadable(&folder, e))? {
            let entry = entry.map_err(|e| unreadable(&folder, e))?;
            if entry.file_type().map_err(|e| unreadable(&entry.path(), e))?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// The name of the module in a file called `vfio-pci.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let (name, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".gz" | ".zst").then(|| name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let unreadable = |source| ModuleError::Unreadable { path: path.into(), source };
    let content = fs::read(path).map_err(unreadable)?;
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("ko") => Ok(content),
        Some("xz") => {
            let mut object = Vec::new();
            XzReader::new(content.as_slice(), false)
                .read_to_end(&mut object)
                .map_err(unreadable)?;
            Ok(object)
        }
        _ => Err(ModuleError::Invalid {
            path: path.into(),
            why: "unsupported compression: expected .ko or .ko.xz; decompress the modules".into(),
        }),
    }
}

/// The modules that a module depends on, by its section `.modinfo`: `depends=a,b`.
fn dependencies(path: &Path, object: &[u8]) -> Result<Vec<String>, ModuleError> {
    let invalid = |why: String| ModuleError::Invalid { path: path.into(), why };
    let file = object::File::parse(object).map_err(|e| invalid(e.to_string()))?;
    let section = file.section_by_name(".modinfo");
    let section = section.ok_or_else(|| invalid("it has no section .modinfo".into()))?;
    let info = section.data().map_err(|e| invalid(e.to_string()))?;
    let values = info.split(|byte| *byte == 0).filter_map(|field| field.strip_prefix(b"depends="));
    let names = values.flat_map(|names| names.split(|byte| *byte == b','));
    Ok(names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relocatable ELF object that has only a section `.modinfo`.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let put = |elf: &mut Vec<u8>, at: usize, bytes: &[u8]| {
            elf[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(&mut elf, 16, &1u16.to_le_bytes());
        put(&mut elf, 18, &62u16.to_le_bytes());
        put(&mut elf, 20, &1u32.to_le_bytes());
        let sections = 64 + info.len() + names.len();
        put(&mut elf, 40, &(sections as u64).to_le_bytes());
        put(&mut elf, 52, &64u16.to_le_bytes());
        put(&mut elf, 58, &64u16.to_le_bytes());
        put(&mut elf, 60, &3u16.to_le_bytes());
        put(&mut elf, 62, &2u16.to_le_bytes());
        elf.extend(info.bytes());
        elf.extend(names);
        elf.extend([0; 64]);
        for (name, kind, at, size) in
            [(1u32, 1u32, 64, info.len()), (10, 3, 64 + info.len(), names.len())]
        {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            header[48..56].copy_from_slice(&1u64.to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, depends) in modules {
            let path = tree.path().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module(depends)).unwrap();
        }
        tree
    }

    fn names(tree: &tempfile::TempDir, wanted: &[&str]) -> Vec<String> {
        let modules = in_order(tree.path(), wanted).unwrap();
        modules.into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let tree = tree(&[
            ("virt/kvm.ko", "irqbypass"),
            ("virt/irqbypass.ko", ""),
            ("x86/kvm-amd.ko", "kvm,ccp"),
            ("crypto/ccp.ko", ""),
            ("other.ko", "nothing"),
        ]);
        let wanted = ["kvm_amd", "built_in", "kvm"];
        assert_eq!(names(&tree, &wanted), ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn a_missing_dependency_is_an_error() {
        let tree = tree(&[("tap.ko", "tun")]);
        let error = in_order(tree.path(), &["tap"]).unwrap_err().to_string();
        assert!(error.starts_with("kernel module tap depends on tun, which is not in "), "{error}");
    }

    #[test]
    fn what_is_not_a_module_is_an_error() {
        let tree = tree(&[]);
        fs::create_dir(tree.path().join("kernel")).unwrap();
        fs::write(tree.path().join("kernel/a.ko"), "text").unwrap();
        fs::write(tree.path().join("kernel/b.ko.zst"), "").unwrap();
        fs::write(tree.path().join("kernel/c.ko.xz"), "text").unwrap();
        for (name, why) in [("a", "cannot read"), ("b", "decompress"), ("c", "cannot read")] {
            let error = in_order(tree.path(), &[name]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn modules_are_decompressed() {
        // `printf hello | xz --check=crc32`
        let xz = b"\xfd7zXZ\0\0\x01i\"\xde6\x02\0!\x01\x16\0\0\0t/\xe5\xa3\x01\0\x04hello\0\0\0\0\x86\xa6\x106\0\x01\x19\x05\xbc\xe8\xec\xcb\x90B\x99\r\x01\0\0\0\0\x01YZ";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ko.xz");
        fs::write(&path, xz).unwrap();
        assert_eq!(read(&path).unwrap(), b"hello");
    }
}
