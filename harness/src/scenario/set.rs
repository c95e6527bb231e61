//! Reads scenarios from the working tree, from the command line or from this binary.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Case, ScenarioError, parse};

include!(concat!(env!("OUT_DIR"), "/embedded_scenarios.rs"));

/// The folder of scenarios in the working tree.
pub const FOLDER: &str = "scenarios";

/// A set of scenarios and where they were found.
#[derive(Clone, Debug)]
pub struct Set {
    /// Where they were found, as shown to the user.
    pub origin: String,
    /// Their cases, in order.
    pub cases: Vec<Case>,
}

impl Set {
    /// Reads the scenarios of the working tree if the current directory is one, else the embedded
    /// ones.
    pub fn find() -> Result<Self, ScenarioError> {
        let folder = Path::new(FOLDER);
        let files = scenario_files(folder);
        if files.is_empty() { Self::embedded() } else { Self::read(FOLDER.into(), &files) }
    }

    /// Reads the scenarios that were embedded when this binary was built.
    pub fn embedded() -> Result<Self, ScenarioError> {
        let mut cases = Vec::new();
        for (name, text) in EMBEDDED {
            cases.extend(parse::parse(&format!("(embedded) {name}.toml"), name, text)?);
        }
        Ok(Self { origin: "embedded scenarios".into(), cases })
    }

    /// Reads the scenarios in `paths`: files, folders of files, or folders of theme folders.
    pub fn at(paths: &[PathBuf]) -> Result<Self, ScenarioError> {
        let mut files = Vec::new();
        for path in paths {
            if path.is_dir() {
                let direct = toml_files(path);
                files.extend(if direct.is_empty() { scenario_files(path) } else { direct });
            } else {
                files.push(path.clone());
            }
        }
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        Self::read(names.join(", "), &files)
    }

    fn read(origin: String, files: &[PathBuf]) -> Result<Self, ScenarioError> {
        let mut cases = Vec::new();
        for path in files {
            let text = fs::read_to_string(path)
                .map_err(|source| ScenarioError::Read { path: path.clone(), source })?;
            cases.extend(parse::parse(&path.display().to_string(), &name(path), &text)?);
        }
        Ok(Self { origin, cases })
    }
}

/// The name `theme/scenario`, from the file's folder and stem.
pub fn name(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let part = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    format!("{}/{}", part(path.parent().and_then(Path::file_name)), part(path.file_stem()))
}

/// The scenario files in the theme folders of `folder`, sorted by path.
fn scenario_files(folder: &Path) -> Vec<PathBuf> {
    let mut themes: Vec<PathBuf> = entries(folder).filter(|path| path.is_dir()).collect();
    themes.sort();
    themes.iter().flat_map(|theme| toml_files(theme)).collect()
}

fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let is_scenario = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "toml")
            && path.file_name().is_some_and(|n| n != "Cargo.toml")
    };
    let mut files: Vec<PathBuf> = entries(folder).filter(is_scenario).collect();
    files.sort();
    files
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_scenario_is_valid_and_every_name_is_unique() {
        let set = Set::embedded().unwrap();
        assert!(!set.cases.is_empty());
        let mut names: Vec<&str> = set.cases.iter().map(|c| c.name.as_str()).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
