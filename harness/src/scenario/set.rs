//! Reads scenarios from the working tree, from the command line or from this binary.

use std::collections::{BTreeMap, BTreeSet};
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
        let parse = |(name, text): &(&str, &str)| {
            let file = format!("(embedded) {name}.toml");
            let cases = parse::parse(&file, name, text);
            (file, cases)
        };
        Self::collect("embedded scenarios".into(), EMBEDDED.iter().map(parse))
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
        // A file may be in a folder that is given too.
        let mut seen = BTreeSet::new();
        files.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        Self::read(names.join(", "), &files)
    }

    fn read(origin: String, files: &[PathBuf]) -> Result<Self, ScenarioError> {
        let parse = |path: &PathBuf| {
            let file = path.display().to_string();
            let cases = fs::read_to_string(path)
                .map_err(|source| ScenarioError::Read { path: path.clone(), source })
                .and_then(|text| parse::parse(&file, &name(path), &text));
            (file, cases)
        };
        Self::collect(origin, files.iter().map(parse))
    }

    /// Collects the cases of files, or the errors of all of them.
    fn collect(
        origin: String,
        files: impl Iterator<Item = (String, Result<Vec<Case>, ScenarioError>)>,
    ) -> Result<Self, ScenarioError> {
        let (mut all, mut errors) = (Vec::new(), Vec::new());
        let mut files_of = BTreeMap::new();
        for (file, cases) in files {
            match cases {
                Ok(cases) => {
                    let twice =
                        cases.iter().find_map(|case| Some((case, files_of.get(&case.name)?)));
                    if let Some((case, other)) = twice {
                        let message = format!("the case {} is also in {other}", case.name);
                        errors.push(ScenarioError::sense(&file, message));
                    }
                    files_of.extend(cases.iter().map(|case| (case.name.clone(), file.clone())));
                    all.extend(cases);
                }
                Err(error) => errors.push(error),
            }
        }
        match ScenarioError::all(errors) {
            None => Ok(Self { origin, cases: all }),
            Some(error) => Err(error),
        }
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

    /// Writes files to a folder.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    const GOOD: &str = "summary = \"\"\nsteps = [\"boot\"]\n";

    #[test]
    fn errors_of_all_files_are_reported() {
        let folder = folder(&[
            ("a/good.toml", GOOD),
            ("a/one.toml", "summary = \"\"\nstep = []\n"),
            ("b/two.toml", "summary = \"\"\nsteps = [\"boot\"]\nsed = 1\n"),
            ("b/three.toml", "summary = \n"),
        ]);
        let error = Set::at(&[folder.path().into(), folder.path().join("none.toml")]).unwrap_err();
        let shown = error.to_string().replace(&folder.path().display().to_string(), "scenarios");
        insta::assert_snapshot!(shown);
        let styled = anstream::adapter::strip_str(&error.styled()).to_string();
        assert!(styled.starts_with("4 errors in 4 files\n\n"), "{styled}");
    }

    #[test]
    fn two_cases_of_one_name_are_an_error_and_one_file_given_twice_is_not() {
        let folder = folder(&[("x/a/b.toml", GOOD), ("y/a/b.toml", GOOD)]);
        let (x, y) = (folder.path().join("x"), folder.path().join("y"));
        let error = Set::at(&[x.clone(), y]).unwrap_err().to_string();
        let shown = error.replace(&folder.path().display().to_string(), "");
        assert_eq!(shown, "/y/a/b.toml: the case a/b is also in /x/a/b.toml");
        assert_eq!(Set::at(&[x.clone(), x.join("a/b.toml")]).unwrap().cases.len(), 1);
    }
}
