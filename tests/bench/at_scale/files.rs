//! The source `files`: manifests in few files a namespace, so that a change rewrites one small file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::Error;
use super::objects::Object;
use super::world::{HOT, World};

/// A directory of manifests.
#[derive(Debug)]
pub struct Files {
    watched: PathBuf,
    // Files are made beside it and moved in, so that nobody sees half of one.
    staging: PathBuf,
}

impl Files {
    /// Writes all of a world, every mark as given.
    pub fn begin(dir: &Path, world: &World, marks: &[u64]) -> Result<Self, Error> {
        let files = Self { watched: dir.join("files"), staging: dir.join("staging") };
        for dir in [&files.watched, &files.staging] {
            std::fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.clone(), source })?;
        }
        for namespace in 0..world.namespaces() {
            let services = world.in_namespace(namespace).map(World::service_object);
            let all = std::iter::once(World::namespace_object(namespace)).chain(services);
            files.write(&format!("services-{namespace:03}.yaml"), all)?;
        }
        files.write("nodes.yaml", world.nodes())?;
        for file in 0..world.files() {
            files
                .write(&format!("pods-{file:05}.yaml"), world.in_file(file).flat_map(|service| world.pods(service)))?;
            files.slices(world, file, marks)?;
        }
        files.write("pods-hot.yaml", world.pods(HOT))?;
        files.hot(world, marks)?;
        files.route("beside", 0)?;
        files.route("edited", 0)?;
        Ok(files)
    }

    /// Where they are.
    pub fn watched(&self) -> &Path {
        &self.watched
    }

    /// Flags by which control reads it.
    pub fn flags(&self) -> Vec<String> {
        vec!["--files".to_owned(), self.watched.display().to_string()]
    }

    /// Changes the endpoints of the services of one file.
    pub fn slices(&self, world: &World, file: usize, marks: &[u64]) -> Result<(), Error> {
        let slices = world.in_file(file).flat_map(|service| world.slices(service, marks));
        self.write(&format!("slices-{file:05}.yaml"), slices)
    }

    /// Changes endpoints of the hot service.
    pub fn hot(&self, world: &World, marks: &[u64]) -> Result<(), Error> {
        self.write("slices-hot.yaml", world.slices(HOT, marks))
    }

    /// Edits a route of the hot service.
    pub fn route(&self, name: &str, micros: u64) -> Result<(), Error> {
        self.write(&format!("route-{name}.yaml"), [World::route(name, micros)])
    }

    fn write(&self, name: &str, objects: impl IntoIterator<Item = Object>) -> Result<(), Error> {
        let mut text = String::new();
        for object in objects {
            let _ = writeln!(text, "---\n{}", object.body);
        }
        let staged = self.staging.join(name);
        std::fs::write(&staged, text)
            .and_then(|()| std::fs::rename(&staged, self.watched.join(name)))
            .map_err(|source| Error::File { path: staged, source })
    }
}
