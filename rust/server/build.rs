//! Compiles the proto files with a compiler in Rust, so that no `protoc` has to be installed.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = ["ledger", "account", "process", "access", "errors"];
    let files = files.map(|name| format!("bursar/v1/{name}.proto"));
    let rate_limits = ["envoy/service/ratelimit/v3/rls.proto"];
    compile(&root, &files, "descriptors.bin")?;
    compile(&root, &rate_limits, "envoy_descriptors.bin")
}

/// Makes the modules, and a file of the descriptors for reflection.
fn compile(
    root: &Path,
    files: &[impl AsRef<Path>],
    name: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(files, [root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join(name), prost_bytes(&descriptors))?;
    tonic_prost_build::configure().build_client(false).btree_map(".").compile_fds(descriptors)?;
    Ok(())
}

fn prost_bytes(message: &impl protox::prost_reflect::prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}
