//! Root file systems as they are: a folder, a tarball, an image of containers.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::archive::{Archive, Node, Owners};
use crate::content::Content;
use crate::tarball::{self, Layered};

/// A root file system, and what its maker says of running it.
#[derive(Debug, Default)]
pub struct Root {
    /// Its files.
    pub archive: Archive,
    /// What an image says.
    pub config: Config,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// User, or user and group.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The first words of the command.
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the words behind the entry point.
    pub cmd: Option<Vec<String>>,
    /// The folder that it runs in.
    pub working_dir: Option<String>,
}

impl Config {
    /// All of the command; empty where the image has none.
    pub fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).flatten().cloned().collect()
    }
}

/// Reads a root file system: a folder, a tarball of one, an OCI layout (a folder or a tarball), or what
/// `docker save` and `podman save` write.
pub fn read(path: &Path) -> Result<Root> {
    read_any(path).with_context(|| path.display().to_string())
}

fn read_any(path: &Path) -> Result<Root> {
    if path.is_dir() {
        if path.join("oci-layout").is_file() || path.join("manifest.json").is_file() {
            return read_image(&Files::Folder(path.to_path_buf()));
        }
        let mut archive = Archive::new();
        archive.put_host("", path, Owners::Kept, &mut |_, _| {})?;
        return Ok(Root { archive, config: Config::default() });
    }
    let mut archive = Archive::new();
    tarball::read(tarball::open(path)?, &mut archive, Layered::No)?;
    if archive.get("oci-layout").is_some() || archive.get("manifest.json").is_some() {
        return read_image(&Files::Tarball(archive));
    }
    Ok(Root { archive, config: Config::default() })
}

/// Where the files of an image lie.
enum Files {
    Folder(PathBuf),
    Tarball(Archive),
}

impl Files {
    fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Files::Folder(folder) => {
                let path = inside(folder, name)?;
                std::fs::read(&path).with_context(|| path.display().to_string())
            }
            Files::Tarball(archive) => Ok(find(archive, name)?.read()?),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.bytes(name)?).with_context(|| name.to_string())
    }

    /// The layer of that name, as a file of its own.
    fn layer(&self, name: &str, scratch: &Path) -> Result<File> {
        match self {
            Files::Folder(folder) => tarball::open(&inside(folder, name)?),
            Files::Tarball(archive) => {
                let path = scratch.join("layer");
                std::fs::write(&path, find(archive, name)?.read()?)?;
                tarball::open(&path)
            }
        }
    }
}

/// A file of the image's folder: names in an image lead nowhere else.
fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let is_plain = |part| matches!(part, std::path::Component::Normal(_));
    ensure!(Path::new(name).components().all(is_plain), "{name}: a path that leaves the image");
    Ok(folder.join(name))
}

fn find<'a>(archive: &'a Archive, name: &str) -> Result<&'a Content> {
    match archive.follow(name) {
        Some(Node::File(_, content)) => Ok(content),
        _ => bail!("{name} is missing in the image"),
    }
}

/// `manifest.json` of a saved image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// What points at a blob of an OCI image.
#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index of images, or the manifest of one: what is there tells which.
#[derive(Deserialize)]
struct Manifest {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// The file that describes how an image is run.
#[derive(Deserialize)]
struct Description {
    config: Option<Config>,
}

fn read_image(files: &Files) -> Result<Root> {
    let saved = match files.json::<Vec<Saved>>("manifest.json") {
        Ok(images) => images.into_iter().next().context("manifest.json names no image")?,
        Err(_) => find_image(files)?,
    };
    let mut archive = Archive::new();
    let scratch = tempfile::tempdir()?;
    for layer in &saved.layers {
        let read = |file| tarball::read(file, &mut archive, Layered::Yes);
        files.layer(layer, scratch.path()).and_then(read).with_context(|| layer.clone())?;
    }
    let description: Description = files.json(&saved.config)?;
    Ok(Root { archive, config: description.config.unwrap_or_default() })
}

/// The image for this kind of machine in an OCI layout.
fn find_image(files: &Files) -> Result<Saved> {
    /// An index may lead to an index, as of several architectures.
    const MOST_INDEXES: usize = 4;
    let mut name = "index.json".to_string();
    for _ in 0..MOST_INDEXES {
        let manifest: Manifest = files.json(&name)?;
        if let (Some(config), Some(layers)) = (&manifest.config, &manifest.layers) {
            let layers = layers.iter().map(|layer| blob(&layer.digest)).collect::<Result<_>>()?;
            return Ok(Saved { config: blob(&config.digest)?, layers });
        }
        let images = manifest.manifests.unwrap_or_default();
        let fits = |image: &&Descriptor| {
            image.platform.as_ref().is_none_or(|p| p.architecture == "amd64" && p.os == "linux")
        };
        let image = images.iter().find(fits).context("there is no image for amd64 in it")?;
        name = blob(&image.digest)?;
    }
    bail!("its indexes lead to no image")
}

/// Where an OCI layout has the bytes with this digest.
fn blob(digest: &str) -> Result<String> {
    let (algorithm, hash) = digest.split_once(':').with_context(|| format!("{digest} is no digest"))?;
    Ok(format!("blobs/{algorithm}/{hash}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn layer(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn description() -> serde_json::Value {
        json!({ "architecture": "amd64", "config": {
            "User": "redis:0", "Env": ["A=b"], "Entrypoint": ["/entry"], "Cmd": ["serve", "-v"],
            "WorkingDir": "/data", "ExposedPorts": { "6379/tcp": {} }
        } })
    }

    fn check(root: &Root) {
        assert_eq!(root.config.command(), ["/entry", "serve", "-v"]);
        assert_eq!(root.config.user.as_deref(), Some("redis:0"));
        assert_eq!(root.config.working_dir.as_deref(), Some("/data"));
        assert_eq!(root.archive.get("gone"), None);
        assert_eq!(find(&root.archive, "etc/os-release").unwrap().read().unwrap(), b"second");
    }

    fn layers() -> [Vec<u8>; 2] {
        [
            layer(&[("etc/os-release", "first"), ("gone", "x")]),
            layer(&[("etc/os-release", "second"), (".wh.gone", "")]),
        ]
    }

    fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn pack(folder: &Path) -> PathBuf {
        let path = folder.with_extension("tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        builder.append_dir_all(".", folder).unwrap();
        builder.finish().unwrap();
        path
    }

    #[test]
    fn an_image_that_docker_saved_is_read() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("image");
        let [lower, upper] = layers();
        write(&folder, "1/layer.tar", lower);
        write(&folder, "2/layer.tar", upper);
        write(&folder, "config.json", description().to_string());
        let manifest = json!([{ "Config": "config.json", "Layers": ["1/layer.tar", "2/layer.tar"] }]);
        write(&folder, "manifest.json", manifest.to_string());
        check(&read(&folder).unwrap());
        check(&read(&pack(&folder)).unwrap());
    }

    #[test]
    fn an_oci_layout_is_read_by_its_indexes() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("image");
        let [lower, upper] = layers();
        write(&folder, "oci-layout", r#"{"imageLayoutVersion": "1.0.0"}"#);
        write(&folder, "blobs/sha256/1", lower);
        write(&folder, "blobs/sha256/2", upper);
        write(&folder, "blobs/sha256/c", description().to_string());
        let digest = |name: &str| json!({ "digest": format!("sha256:{name}") });
        let manifest = json!({ "config": digest("c"), "layers": [digest("1"), digest("2")] });
        write(&folder, "blobs/sha256/m", manifest.to_string());
        let image = |name: &str, architecture: &str| {
            let platform = json!({ "architecture": architecture, "os": "linux" });
            json!({ "digest": format!("sha256:{name}"), "platform": platform })
        };
        let index = json!({ "manifests": [image("none", "arm64"), image("m", "amd64")] });
        write(&folder, "blobs/sha256/i", index.to_string());
        write(&folder, "index.json", json!({ "manifests": [digest("i")] }).to_string());
        check(&read(&folder).unwrap());
        check(&read(&pack(&folder)).unwrap());
        // An image cannot bring files of the host into the guest.
        write(&folder, "index.json", json!({ "manifests": [digest("../../../../etc/passwd")] }).to_string());
        assert!(format!("{:#}", read(&folder).unwrap_err()).contains("leaves the image"));
    }

    #[test]
    fn a_folder_is_taken_as_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        write(scratch.path(), "usr/bin/sh", "x");
        std::os::unix::fs::symlink("usr/bin", scratch.path().join("bin")).unwrap();
        let root = read(scratch.path()).unwrap();
        assert_eq!(root.archive.get("bin"), Some(&Node::Link("usr/bin".into())));
        assert!(matches!(root.archive.get("bin/sh"), Some(Node::File(..))));
        assert!(root.config.command().is_empty());
        assert!(read(Path::new("/surely/not/there")).is_err());
    }
}
