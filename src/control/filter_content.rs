//! The content that a filter is shown: in memory, or in the message's own file, of which it is read piece by piece beside
//! the control thread's loop.

use crate::limits::{FILTER_PIECE, HEADER_SCAN_OCTETS_MAX};
use crate::policy::headers::section_len;
use crate::shard::message::FilterContent;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A content. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Content {
    place: Place,
    len: u64,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Bytes),
    File { file: Arc<File>, offset: u64 },
}

impl Content {
    /// The content of this message.
    ///
    /// # Errors
    /// When its file cannot be opened.
    pub async fn open(content: &FilterContent, file: &Path) -> io::Result<Content> {
        match content {
            FilterContent::Memory(bytes) => {
                Ok(Content { len: bytes.len() as u64, place: Place::Memory(bytes.clone()) })
            }
            &FilterContent::File { offset, len } => {
                let path = file.to_owned();
                let file = blocking(move || File::open(path)).await?;
                Ok(Content { len, place: Place::File { file: Arc::new(file), offset } })
            }
        }
    }

    /// Its octets.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The octets from this one on, at most [`FILTER_PIECE`]; none at the end.
    ///
    /// # Errors
    /// When the file cannot be read, or is shorter than it should be.
    pub async fn piece(&self, from: u64) -> io::Result<Bytes> {
        self.read(from, FILTER_PIECE).await
    }

    /// Its header section with the empty line, or as much of it as is looked at.
    ///
    /// # Errors
    /// As with [`Content::piece`].
    pub async fn header_section(&self) -> io::Result<Bytes> {
        let begin = self.read(0, HEADER_SCAN_OCTETS_MAX).await?;
        Ok(match section_len(&begin) {
            Some(len) => begin.slice(..len),
            None => begin,
        })
    }

    async fn read(&self, from: u64, most: usize) -> io::Result<Bytes> {
        let from = from.min(self.len);
        let len = (self.len - from).min(most as u64) as usize;
        match &self.place {
            Place::Memory(bytes) => Ok(bytes.slice(from as usize..from as usize + len)),
            Place::File { file, offset } => {
                let (file, at) = (Arc::clone(file), offset + from);
                blocking(move || {
                    let mut piece = vec![0; len];
                    file.read_exact_at(&mut piece, at)?;
                    Ok(piece.into())
                })
                .await
            }
        }
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(act).await.map_err(io::Error::other)?
}
