//! Finds the Debian kernels that `ci/install-lab` installs.
//!
//! Each has a folder, named after its release, with `vmlinuz` and the tree `modules`; a static busybox is
//! next to the folder that holds them all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The environment variable that names the folder of kernels.
pub const VARIABLE: &str = "CPR_KERNELS";

/// Where `ci/install-lab` puts them, in a working tree.
const INSTALLED: &str = "ci/.lab/kernels";

/// Where a distribution has its modules.
const HOST: &str = "/lib/modules";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The folder that has `kernel/`, the tree of modules.
    pub modules: PathBuf,
}

/// The kernels in a folder, at least one.
#[derive(Clone, Debug)]
pub struct Kernels {
    folder: PathBuf,
    /// From the oldest to the newest.
    kernels: Vec<Kernel>,
}

/// Why a kernel cannot be found.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The folder cannot be read.
    #[error("cannot read the kernels in {}: {source}: run ci/install-lab in a working tree, or set {VARIABLE}", .folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// No kernel is there.
    #[error("no kernel in {}: expected RELEASE/vmlinuz and RELEASE/modules: run ci/install-lab in a working tree", .folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// What was named is not a kernel with modules.
    #[error("cannot use {} as a kernel: {why}", .path.display())]
    Unusable {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There are kernels, but none of the wanted series.
    #[error("no kernel {wanted} in {}, which has {found}", .folder.display())]
    Series {
        /// The folder.
        folder: PathBuf,
        /// Beginning of the release.
        wanted: String,
        /// Releases that are there.
        found: String,
    },
}

impl Kernels {
    /// Finds the kernels in `$CPR_KERNELS`, else in the working directory's `ci/.lab/kernels`, else in that of
    /// the working tree that this binary was built from.
    pub fn find() -> Result<Self, KernelError> {
        Self::in_folder(&match std::env::var_os(VARIABLE) {
            Some(folder) if !folder.is_empty() => folder.into(),
            _ => installed(),
        })
    }

    /// Finds the kernels in `folder`.
    pub fn in_folder(folder: &Path) -> Result<Self, KernelError> {
        let unreadable = |source| KernelError::Unreadable { folder: folder.into(), source };
        let folder = &folder.canonicalize().map_err(unreadable)?;
        let unreadable = |source| KernelError::Unreadable { folder: folder.into(), source };
        let mut kernels = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            kernels.extend(Kernel::at(&entry.map_err(unreadable)?.path()));
        }
        if kernels.is_empty() {
            return Err(KernelError::Empty { folder: folder.into() });
        }
        kernels.sort_by_cached_key(|kernel| (numbers(&kernel.release), kernel.release.clone()));
        Ok(Self { folder: folder.into(), kernels })
    }

    /// Returns the folder that holds them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns all, from the oldest to the newest.
    pub fn all(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Returns the newest.
    pub fn newest(&self) -> &Kernel {
        self.kernels.last().expect("checked when they were found")
    }

    /// Returns the newest of a series such as `6` or `7.3`.
    pub fn of_series(&self, series: &str) -> Result<&Kernel, KernelError> {
        let wanted = numbers(series);
        let of_series = |kernel: &&Kernel| numbers(&kernel.release).starts_with(&wanted);
        self.kernels.iter().rev().find(of_series).ok_or_else(|| KernelError::Series {
            folder: self.folder.clone(),
            wanted: series.into(),
            found: releases(&self.kernels),
        })
    }

    /// Returns the static busybox next to the folder, if it is there.
    pub fn busybox(&self) -> Option<PathBuf> {
        Some(self.folder.parent()?.join("busybox")).filter(|file| file.is_file())
    }
}

impl Kernel {
    /// Returns the kernel in `folder`, which bears the name of its release.
    pub fn at(folder: &Path) -> Option<Self> {
        let release = folder.file_name()?.to_str()?.to_owned();
        let (vmlinuz, modules) = (folder.join("vmlinuz"), folder.join("modules"));
        (vmlinuz.is_file() && modules.is_dir()).then_some(Self { release, vmlinuz, modules })
    }

    /// Returns the kernel that a user names: a bzImage, whose modules are in `modules` next to it or in the
    /// host's `/lib/modules`; or a folder with `vmlinuz` and `modules`, or with `vmlinuz` and `kernel`.
    pub fn named(path: &Path) -> Result<Self, KernelError> {
        let unusable = |why: String| KernelError::Unusable { path: path.into(), why };
        let (vmlinuz, folder) = match path.is_dir() {
            true => (path.join("vmlinuz"), path),
            false => (path.to_owned(), path.parent().unwrap_or(Path::new("."))),
        };
        let image =
            fs::read(&vmlinuz).map_err(|e| unusable(format!("{}: {e}", vmlinuz.display())))?;
        let release = release(&image);
        let release = release.ok_or_else(|| unusable("it is not a bzImage of Linux".into()))?;
        let places = [folder.join("modules"), folder.to_owned(), Path::new(HOST).join(&release)];
        let modules = places.iter().find(|place| place.join("kernel").is_dir());
        let modules = modules.cloned().ok_or_else(|| {
            let looked = places.map(|place| place.join("kernel").display().to_string());
            unusable(format!("found no modules of {release} in {}", looked.join(", ")))
        })?;
        Ok(Self { release, vmlinuz, modules })
    }
}

fn installed() -> PathBuf {
    let here = PathBuf::from(INSTALLED);
    if here.is_dir() { here } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(here) }
}

fn releases(kernels: &[Kernel]) -> String {
    let releases: Vec<_> = kernels.iter().map(|kernel| kernel.release.as_str()).collect();
    releases.join(", ")
}

/// The numbers at the beginning of a release: 7, 3 and 4 of `7.3.4+deb13-amd64`.
fn numbers(release: &str) -> Vec<u32> {
    let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
    release[..end].split('.').map_while(|number| number.parse().ok()).collect()
}

/// The release in the header of a bzImage (Linux boot protocol: `header` at 0x202, `kernel_version` at
/// 0x20e, an offset from 0x200).
fn release(image: &[u8]) -> Option<String> {
    (image.get(0x202..0x206)? == b"HdrS").then_some(())?;
    let at = 0x200 + usize::from(u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?));
    let text = image.get(at..)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a bzImage.
    fn image(version: &str) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        image
    }

    #[test]
    fn a_kernel_is_named_by_its_image_or_folder() {
        let folder = folder(&["mine"]);
        let mine = folder.path().join("kernels/mine");
        fs::write(mine.join("vmlinuz"), image("6.9.1-me (me@here) #1")).unwrap();
        fs::create_dir(mine.join("modules/kernel")).unwrap();
        for path in [mine.clone(), mine.join("vmlinuz")] {
            let kernel = Kernel::named(&path).unwrap();
            assert_eq!(kernel.release, "6.9.1-me");
            assert_eq!(kernel.modules, mine.join("modules"));
        }
        fs::remove_dir(mine.join("modules/kernel")).unwrap();
        let error = Kernel::named(&mine).unwrap_err().to_string();
        assert!(error.contains("found no modules of 6.9.1-me in "), "{error}");
        fs::write(mine.join("vmlinuz"), "text").unwrap();
        let error = Kernel::named(&mine).unwrap_err().to_string();
        assert!(error.contains("not a bzImage"), "{error}");
    }

    fn folder(releases: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for release in releases {
            let kernel = folder.path().join("kernels").join(release);
            fs::create_dir_all(kernel.join("modules")).unwrap();
            fs::write(kernel.join("vmlinuz"), "").unwrap();
        }
        folder
    }

    fn kernels(folder: &tempfile::TempDir) -> Kernels {
        Kernels::in_folder(&folder.path().join("kernels")).unwrap()
    }

    #[test]
    fn kernels_are_sorted_by_number() {
        let folder = folder(&["6.12.117+deb13-amd64", "7.3.4+deb13-amd64", "6.9.1-amd64"]);
        let found = kernels(&folder);
        assert_eq!(releases(found.all()), "6.9.1-amd64, 6.12.117+deb13-amd64, 7.3.4+deb13-amd64");
        assert_eq!(found.newest().release, "7.3.4+deb13-amd64");
        assert_eq!(found.of_series("6").unwrap().release, "6.12.117+deb13-amd64");
        assert_eq!(found.of_series("6.9").unwrap().release, "6.9.1-amd64");
    }

    #[test]
    fn a_series_is_not_a_prefix_of_a_number() {
        let error = kernels(&folder(&["6.12.1-amd64"])).of_series("6.1").unwrap_err().to_string();
        assert!(error.starts_with("no kernel 6.1 in "), "{error}");
        assert!(error.ends_with("which has 6.12.1-amd64"), "{error}");
    }

    #[test]
    fn a_folder_without_modules_is_no_kernel() {
        let folder = folder(&["6.12.1-amd64"]);
        fs::remove_dir(folder.path().join("kernels/6.12.1-amd64/modules")).unwrap();
        let error = Kernels::in_folder(&folder.path().join("kernels")).unwrap_err();
        assert!(matches!(error, KernelError::Empty { .. }), "{error}");
        let error = Kernels::in_folder(&folder.path().join("nothing")).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn busybox_is_next_to_the_kernels() {
        let folder = folder(&["6.12.1-amd64"]);
        assert_eq!(kernels(&folder).busybox(), None);
        fs::write(folder.path().join("busybox"), "").unwrap();
        assert_eq!(kernels(&folder).busybox(), Some(folder.path().join("busybox")));
    }
}
