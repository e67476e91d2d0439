//! With the feature `client-bundles`: embeds the bundles of the npm package `socket.io` (or
//! `socket.io-client`), which `serve_client` then serves without any file beside the program.
//!
//! The folder is `SOCKRING_CLIENT_DIST`, or the first `node_modules` above the build's output, above this
//! package, or of this repository's own tests.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const FILES: [&str; 8] = include!("src/io/client_bundles.names");

const VARIABLE: &str = "SOCKRING_CLIENT_DIST";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/io/client_bundles.names");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    if env::var_os("CARGO_FEATURE_CLIENT_BUNDLES").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let code = embed(&out).unwrap_or_else(|problem| format!("compile_error!({problem:?});\n"));
    fs::write(out.join("client_bundles.rs"), code).expect("cargo has made the folder");
}

/// The code that holds the bundles, or why there is none.
fn embed(out: &Path) -> Result<String, String> {
    let folder = find(out)?;
    let unusable = |error| {
        let folder = folder.display();
        format!("{VARIABLE} names {folder}, which the feature client-bundles cannot read: {error}")
    };
    let folder = folder.canonicalize().map_err(unusable)?;
    let mut code = format!("pub(super) const VERSION: &str = {:?};\n", version(&folder)?);
    code.push_str("pub(super) static FILES: [(&str, &[u8]); 8] = [\n");
    for name in FILES {
        let file = folder.join(name);
        if !file.is_file() {
            return Err(format!("{} is missing, which the feature client-bundles embeds", file.display()));
        }
        println!("cargo::rerun-if-changed={}", file.display());
        let _ = writeln!(code, "    ({name:?}, include_bytes!({:?})),", file.display().to_string());
    }
    code.push_str("];\n");
    Ok(code)
}

fn find(out: &Path) -> Result<PathBuf, String> {
    if let Some(folder) = env::var_os(VARIABLE) {
        return Ok(folder.into());
    }
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let tests = package.join("tests/clients");
    let mut folders = out.ancestors().chain(package.ancestors()).chain([&*tests]);
    let found = folders.find_map(|folder| {
        let packages = ["node_modules/socket.io/client-dist", "node_modules/socket.io-client/dist"];
        packages.map(|package| folder.join(package)).into_iter().find(|dist| dist.join(FILES[0]).is_file())
    });
    found.ok_or_else(|| {
        format!(
            "the feature client-bundles embeds the client's bundles and finds none: run `npm install socket.io` \
             in your project, or set {VARIABLE} to the folder that has {}",
            FILES[0]
        )
    })
}

/// The version in the `package.json` of the folder's package.
fn version(folder: &Path) -> Result<String, String> {
    let file = folder.join("../package.json");
    println!("cargo::rerun-if-changed={}", file.display());
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    // A line of its own in every package.json that npm installs; not worth a dependency of the build.
    let value = text.split_once("\"version\":").and_then(|(_, rest)| rest.split('"').nth(1));
    value.map(str::to_owned).ok_or_else(|| format!("{} has no version", file.display()))
}
