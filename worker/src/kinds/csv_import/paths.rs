//! Which files may be read: only those below the allowed directories, whatever links and dots the path goes through.
//!
//! A path that leads outside is refused in the same words whether it exists or not.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::libc;

use crate::JobError;

/// Opens the file that `path` means; a relative path is sought below each directory in turn.
///
/// # Errors
/// Final failures: `not_allowed`, `not_found`, `not_readable`, `not_a_csv` for what is no regular file.
pub(super) fn open(path: &Path, dirs: &[PathBuf]) -> Result<(File, PathBuf), JobError> {
    if dirs.is_empty() {
        return Err(JobError::fatal("not_allowed", "no import directory was allowed (--import-dir)"));
    }
    let mut missing = None;
    for dir in dirs {
        // Joining an absolute path yields that path.
        match resolve(&dir.join(path), dirs) {
            Ok(found) => return open_regular(found),
            Err(error @ JobError::Failed { .. }) if path.is_absolute() => return Err(error),
            // A forbidden path stays forbidden although another directory has no such file.
            Err(error) => missing = missing.filter(is_not_allowed).or(Some(error)),
        }
    }
    Err(missing.unwrap_or_else(not_allowed))
}

fn resolve(path: &Path, dirs: &[PathBuf]) -> Result<PathBuf, JobError> {
    let inside = |path: &Path| dirs.iter().any(|dir| path.starts_with(dir));
    if let Ok(real) = path.canonicalize() {
        return if inside(&real) { Ok(real) } else { Err(not_allowed()) };
    }
    // What does not exist is judged by its deepest ancestor that does: only what is missing *inside* is "not found".
    let mut below = path;
    while let Some(above) = below.parent() {
        if let Ok(real) = above.canonicalize() {
            let dangling = fs::symlink_metadata(below).is_ok_and(|meta| meta.is_symlink());
            return Err(if inside(&real) && !dangling { not_found(path) } else { not_allowed() });
        }
        below = above;
    }
    Err(not_allowed())
}

fn open_regular(path: PathBuf) -> Result<(File, PathBuf), JobError> {
    // The path is canonical, so a link here was put in place after the check; a pipe must not block the open.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file =
        File::options().read(true).custom_flags(flags).open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_found(&path),
            _ => JobError::fatal("not_readable", format!("{}: {error}", name(&path))),
        })?;
    let meta = file.metadata().map_err(|e| JobError::retryable("io", e.to_string()))?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a directory" } else { "no regular file" };
        return Err(JobError::fatal("not_a_csv", format!("{} is {what}", name(&path))));
    }
    Ok((file, path))
}

fn is_not_allowed(error: &JobError) -> bool {
    matches!(error, JobError::Failed { code, .. } if code == "not_allowed")
}

fn not_allowed() -> JobError {
    JobError::fatal("not_allowed", "the path does not lie below an allowed import directory")
}

fn not_found(path: &Path) -> JobError {
    JobError::fatal("not_found", format!("there is no file {}", name(path)))
}

/// The last part of a path: error messages name no directories.
fn name(path: &Path) -> String {
    format!("{:?}", path.file_name().unwrap_or_default().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(path: &Path, dirs: &[PathBuf]) -> String {
        match open(path, dirs) {
            Ok(_) => "ok".to_owned(),
            Err(JobError::Failed { code, message, retryable: false }) => {
                assert!(code != "not_allowed" || !message.contains("secret"), "{message}");
                code
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_outside_are_refused_alike_whether_they_exist_or_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (allowed, outside) = (root.join("allowed"), root.join("allowed-not"));
        for dir in [&allowed, &outside] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("secret.csv"), "a\n1\n").unwrap();
        }
        std::os::unix::fs::symlink(outside.join("secret.csv"), allowed.join("link.csv")).unwrap();
        std::os::unix::fs::symlink(outside.join("missing.csv"), allowed.join("dangling.csv")).unwrap();
        std::os::unix::fs::symlink(&outside, allowed.join("dir")).unwrap();
        std::os::unix::fs::symlink(allowed.join("secret.csv"), allowed.join("within.csv")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(allowed.join("pipe")).status().unwrap();
        assert!(made.success(), "mkfifo (coreutils) is needed");
        let dirs = [allowed.clone()];
        for (path, expected) in [
            ("secret.csv", "ok"),
            ("within.csv", "ok"),
            ("./dir/../secret.csv", "not_allowed"), // through the link, `..` is the root
            ("missing.csv", "not_found"),
            ("missing/../secret.csv", "not_found"),
            ("link.csv", "not_allowed"),
            ("dangling.csv", "not_allowed"),
            ("dir/secret.csv", "not_allowed"),
            ("dir/missing.csv", "not_allowed"),
            ("../allowed-not/secret.csv", "not_allowed"),
            ("../allowed-not/missing.csv", "not_allowed"),
            ("../../../../../../../../etc/passwd", "not_allowed"),
            ("/etc/passwd", "not_allowed"),
            ("/etc/missing", "not_allowed"),
            ("/no/such/dir", "not_allowed"),
            (".", "not_a_csv"),
            ("pipe", "not_a_csv"),
            ("", "not_a_csv"),
        ] {
            assert_eq!(code(Path::new(path), &dirs), expected, "{path}");
        }
        assert_eq!(code(&allowed.join("secret.csv"), &dirs), "ok");
        assert_eq!(code(&outside.join("secret.csv"), &dirs), "not_allowed");
        assert_eq!(code(Path::new("secret.csv"), &[]), "not_allowed");
        let two = [outside.clone(), allowed];
        assert_eq!(code(Path::new("within.csv"), &two), "ok", "the second directory is tried too");
    }
}
