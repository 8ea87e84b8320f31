//! Writing what an image's templates say into a stopped guest's root filesystem.

use std::collections::BTreeMap;
use std::io::Write;

use super::files::{self, NewFile, NewKind};
use super::ids::IdView;
use super::rootfs::Volume;
use crate::Error;
use crate::model::expand::Expanded;
use crate::model::template::{self, Subject, Template, Trigger};

/// Bytes of metadata.yaml or of one template.
const SOURCE_MAX: u64 = 1 << 20;

/// An instance as its templates see it.
#[derive(Debug, Clone)]
pub struct Guest {
    pub name: String,
    pub architecture: String,
    pub ephemeral: bool,
    pub expanded: Expanded,
}

/// Templates of a volume, by path in the guest.
pub type Templates = BTreeMap<String, Template>;

/// What the volume's metadata.yaml lists; none when it has no metadata.
pub fn list(volume: &Volume) -> Result<Templates, Error> {
    let text = volume
        .read("metadata.yaml", SOURCE_MAX)
        .map_err(Error::internal)?;
    match text {
        Some(text) => template::parse_metadata(&text).map_err(bad_image),
        None => Ok(Templates::new()),
    }
}

fn bad_image(why: String) -> Error {
    Error::precondition("BAD_IMAGE_METADATA", why)
}

/// Renders the templates that one of `triggers` makes due. Changes this thread's credentials.
pub fn render(
    volume: &Volume,
    ids: IdView,
    templates: &Templates,
    triggers: &[Trigger],
    guest: &Guest,
) -> Result<(), Error> {
    let due = |t: &Template| {
        triggers
            .iter()
            .find(|w| t.when.iter().any(|n| n == w.name()))
            .copied()
    };
    if !templates.values().any(|t| due(t).is_some()) {
        return Ok(());
    }
    let root = volume.rootfs(ids).map_err(Error::internal)?;
    let subject = Subject {
        name: &guest.name,
        architecture: &guest.architecture,
        ephemeral: guest.ephemeral,
        expanded: &guest.expanded,
    };
    for (path, template) in templates {
        let Some(trigger) = due(template) else {
            continue;
        };
        let exists = files::get(&root, path).is_ok();
        if template.create_only && exists {
            continue;
        }
        let source = volume.read(&format!("templates/{}", template.template), SOURCE_MAX);
        let source = source.map_err(Error::internal)?.ok_or_else(|| {
            bad_image(format!("the image has no template {:?}", template.template))
        })?;
        let text =
            template::render(&source, path, trigger, template, &subject).map_err(bad_image)?;
        write(&root, path, &text)?;
    }
    Ok(())
}

fn write(root: &super::rootfs::GuestRoot, path: &str, text: &[u8]) -> Result<(), Error> {
    make_directories(root, path)?;
    // A symlink (resolv.conf is one, often dangling) is the image's own choice: what it names is written,
    // inside the root.
    let file = NewFile {
        path: path.to_owned(),
        kind: NewKind::File { append: false },
        uid: 0,
        gid: 0,
        mode: Some(0o644),
    };
    let mut file = files::put(root, &file)?
        .ok_or_else(|| Error::internal(format!("{path} was not opened")))?;
    file.write_all(text).map_err(Error::internal)
}

fn make_directories(root: &super::rootfs::GuestRoot, path: &str) -> Result<(), Error> {
    let Some((directory, _)) = path.rsplit_once('/') else {
        return Ok(());
    };
    let mut made = String::new();
    for part in directory.split('/').filter(|p| !p.is_empty()) {
        made.push('/');
        made.push_str(part);
        let new = NewFile {
            path: made.clone(),
            kind: NewKind::Directory,
            uid: 0,
            gid: 0,
            mode: Some(0o755),
        };
        files::put(root, &new)?;
    }
    Ok(())
}
