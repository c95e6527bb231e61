//! A backend in a crate of its own, outside of this workspace, drives a real VM through a protocol of its
//! own. See ADDING-A-BACKEND.md.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The example, which this test copies elsewhere.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/own-vmm");
/// The tests of the example to run: VMs that move running, and stopped, and one that does not.
const CASES: [&str; 3] = [
    "transfer/running[cpus=2]",
    "transfer/stopped[cpus=1]",
    "transfer/not-taken-over[guest=running,new=killed-connected]",
];

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn backend_in_a_crate_of_its_own_drives_a_real_vm() {
    // It is built in any case.
    let outcome = match cpr_harness::run::requirements::no_kvm() {
        None => "1 passed",
        Some(_) => "1 ignored",
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let outside = tempfile::tempdir().unwrap();
    copy(Path::new(EXAMPLE), outside.path());
    let manifest = outside.path().join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let absolute = |relative: &str, path: PathBuf| {
        (format!("path = \"{relative}\""), format!("path = \"{}\"", path.display()))
    };
    let paths = [
        absolute("../..", root.join("harness")),
        absolute("../../../vmm/qmp", root.join("vmm/qmp")),
    ];
    let text = paths.iter().fold(text, |text, (relative, path)| {
        assert!(text.contains(relative), "{relative} is missing in {text}");
        text.replace(relative, path)
    });
    std::fs::write(&manifest, text).unwrap();
    std::fs::copy(root.join("Cargo.lock"), outside.path().join("Cargo.lock")).unwrap();
    // What this workspace has built is used again, as far as it is the same.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().nth(2).unwrap();
    let cargo = |tests: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--offline", "--quiet", "--manifest-path"])
            .arg(&manifest)
            .args(tests)
            .current_dir(root)
            .env("CARGO_TARGET_DIR", target)
            .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    for case in CASES {
        let said = cargo(&["--", "--exact", case]);
        assert!(said.contains(outcome), "{case}: {said}");
    }
}
