//! ModelScope's API: the second source, for networks that do not reach the first.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::repository::{Listing, ModelId, RemoteFile, percent_encoded};
use crate::transfer::{Sum, client};
use crate::{HubError, HubOptions};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    size: u64,
    sha256: String,
    r#type: String,
}

pub(crate) fn list(id: &ModelId, options: &HubOptions) -> Result<Listing, HubError> {
    let endpoint = options.modelscope_endpoint.trim_end_matches('/');
    let revision = percent_encoded(id.revision.as_deref().unwrap_or("master"));
    let repository = id.repository();
    let url = format!("{endpoint}/api/v1/models/{repository}/repo/files?Revision={revision}&Recursive=true");
    let mut response =
        client().get(&url).call().map_err(|error| HubError::Transfer(format!("{url}: {error}")))?;
    match response.status().as_u16() {
        200 => {}
        404 => {
            return Err(HubError::NotFound(format!("{url} answers 404: no model or revision of this name")));
        }
        status => return Err(HubError::Transfer(format!("{url} answers {status}"))),
    }
    let answer: Answer =
        response.body_mut().read_json().map_err(|error| HubError::Transfer(format!("{url}: {error}")))?;
    let entries = answer.data.map(|data| data.files).unwrap_or_default();
    let files: Vec<RemoteFile> = entries
        .into_iter()
        .filter(|entry| entry.r#type == "blob")
        .map(|entry| RemoteFile {
            url: format!("{endpoint}/models/{repository}/resolve/{revision}/{}", entry.path),
            name: entry.path,
            bytes: entry.size,
            sum: Sum::Sha256(entry.sha256.to_ascii_lowercase()),
        })
        .collect();
    if files.is_empty() {
        return Err(HubError::NotFound(format!("{url} lists no files")));
    }
    let commit = commit(&files);
    // Hugging Face's token is not ModelScope's business.
    Ok(Listing { commit, files, token: None, source: "ModelScope" })
}

/// A name for the snapshot, in the form of a commit: the listing has none of its own. It changes with any file.
fn commit(files: &[RemoteFile]) -> String {
    let mut pairs: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.sum.hex())).collect();
    pairs.sort_unstable();
    let mut digest = Sha256::new();
    for (path, sum) in pairs {
        digest.update(format!("{path}\0{sum}\n"));
    }
    digest.finalize().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}
