//! Tells a build script which revision it builds; shared by those of `vmm` and `harness`.

use std::path::Path;
use std::process::{Command, Stdio};

/// Number of hexadecimal digits of a commit.
const DIGITS: &str = "--short=12";

/// Sets `CPR_REVISION` to the commit that is checked out at `root`, with ", modified" if `sources`
/// differ from it; to "unknown" without git or outside its work tree, as in an unpacked archive.
///
/// Runs the build script again only when a source or HEAD changes.
pub fn set(root: &Path, sources: &[&str]) {
    for source in sources {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let revision = revision(root, sources).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=CPR_REVISION={revision}");
}

fn revision(root: &Path, sources: &[&str]) -> Option<String> {
    // An archive may be unpacked inside another repository.
    git(root, &["rev-parse", "--show-prefix"]).filter(String::is_empty)?;
    // The log of HEAD grows with each commit and checkout; a repository may be set not to keep it.
    // In a worktree, `.git` is a file and both are elsewhere. Cargo runs the script every time if
    // a named file is missing.
    for name in ["logs/HEAD", "HEAD"] {
        let path = root.join(git(root, &["rev-parse", "--git-path", name])?);
        if path.is_file() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(root, &["rev-parse", DIGITS, "HEAD"])?;
    let changes = git(root, &[&["status", "--porcelain", "--"], sources].concat())?;
    Some(if changes.is_empty() { commit } else { format!("{commit}, modified") })
}

/// Returns what git prints; none if it fails.
fn git(root: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    // Set in a hook, where they name the repository of the hook.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(variable);
    }
    // Without optional locks, `status` leaves the index alone.
    let command = command.arg("--no-optional-locks").arg("-C").arg(root).args(args);
    let done = command.stderr(Stdio::null()).output().ok().filter(|done| done.status.success())?;
    Some(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}
