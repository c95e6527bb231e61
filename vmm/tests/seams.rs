//! Planted bugs act at seams, not in production code: `planted!` is the exception.
//!
//! Read from the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// How many `planted!` there may be. A bug for which a seam fits belongs into
/// `src/failpoints/planted/`.
const MOST: usize = 10;
/// How the comment above each begins.
const REASON: &str = "// No seam: ";
const FAILPOINTS: &str = "failpoints";

/// The Rust files in `folder`, without those in which planted bugs may act.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let folders = folders.into_iter().filter(|path| !path.ends_with(FAILPOINTS));
    let rust = files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "rs"));
    rust.chain(folders.flat_map(|folder| sources(&folder))).collect()
}

/// The numbers of the lines that tell whether a bug is planted, and those of them without a reason
/// right above the statement.
fn planted(text: &str) -> (Vec<usize>, Vec<usize>) {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let asks = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains("planted!(") || code.contains("failpoints::planted(crate")
    };
    let all: Vec<usize> = (0..lines.len()).filter(|at| asks(lines[*at])).collect();
    let has_reason = |at: &usize| {
        let above = lines[..*at].iter().rev().find(|line| !line.starts_with("#["));
        above.is_some_and(|line| line.strip_prefix(REASON).is_some_and(|why| !why.is_empty()))
    };
    let without = all.iter().filter(|at| !has_reason(at)).copied().collect();
    (all, without)
}

#[test]
fn few_planted_bugs_act_outside_of_seams_and_each_has_a_reason() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut all, mut without) = (Vec::new(), Vec::new());
    // The macro itself is in `lib.rs`.
    for path in sources(&src).into_iter().filter(|path| *path != src.join("lib.rs")) {
        let (found, bare) = planted(&fs::read_to_string(&path).unwrap());
        let place = |line: usize| format!("{}:{}", path.display(), line + 1);
        all.extend(found.into_iter().map(place));
        without.extend(bare.into_iter().map(place));
    }
    let text = all.join("\n");
    assert!(
        !all.is_empty() && all.len() <= MOST,
        "{} planted!, at most {MOST}:\n{text}",
        all.len()
    );
    let text = without.join("\n");
    assert!(without.is_empty(), "planted! without \"{REASON}…\" above it:\n{text}");
}

#[test]
fn a_planted_bug_without_a_reason_is_found() {
    let reason = "// No seam: because.\n";
    let code = "if planted!(LeakFd) {}\n";
    assert_eq!(planted(&format!("{reason}{code}")), (vec![1], vec![]));
    assert_eq!(planted(&format!("{reason}#[cfg(x)]\n{code}")), (vec![2], vec![]));
    assert_eq!(planted(&format!("{reason}\n{code}")), (vec![2], vec![2]));
    assert_eq!(planted(&format!("// No seam: \n{code}")), (vec![1], vec![1]));
    assert_eq!(planted(code), (vec![0], vec![0]));
    assert_eq!(planted("/// See `planted!(X)`.\n"), (vec![], vec![]));
}
