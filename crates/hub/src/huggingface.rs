//! Hugging Face's API: one request lists a repository's files with sizes and sums at a commit.

use serde::Deserialize;

use crate::repository::{Listing, ModelId, RemoteFile, percent_encoded};
use crate::transfer::{Sum, authorised, client, refused};
use crate::{HubError, HubOptions};

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    blob_id: Option<String>,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

pub(crate) fn list(id: &ModelId, options: &HubOptions) -> Result<Listing, HubError> {
    let endpoint = options.endpoint.trim_end_matches('/');
    let revision = percent_encoded(id.revision.as_deref().unwrap_or("main"));
    let url = format!("{endpoint}/api/models/{}/revision/{revision}?blobs=true", id.repository());
    let request = authorised(client().get(&url), options.token.as_deref());
    let mut response = request.call().map_err(|error| HubError::Transfer(format!("{url}: {error}")))?;
    match response.status().as_u16() {
        200 => {}
        status @ (401 | 403) => return Err(refused(&url, status)),
        404 => {
            return Err(HubError::NotFound(format!("{url} answers 404: no model or revision of this name")));
        }
        status => return Err(HubError::Transfer(format!("{url} answers {status}"))),
    }
    let info: ModelInfo =
        response.body_mut().read_json().map_err(|error| HubError::Transfer(format!("{url}: {error}")))?;
    let address = |file: &str| format!("{endpoint}/{}/resolve/{}/{file}", id.repository(), info.sha);
    let files = info.siblings.iter().filter_map(|sibling| remote_file(sibling, &address)).collect();
    Ok(Listing { commit: info.sha.clone(), files, token: options.token.clone(), source: "Hugging Face" })
}

fn remote_file(sibling: &Sibling, address: &dyn Fn(&str) -> String) -> Option<RemoteFile> {
    let (bytes, sum) = match &sibling.lfs {
        Some(lfs) => (lfs.size, Sum::Sha256(lfs.sha256.clone())),
        None => (sibling.size?, Sum::GitBlob(sibling.blob_id.clone()?)),
    };
    Some(RemoteFile { name: sibling.rfilename.clone(), bytes, sum, url: address(&sibling.rfilename) })
}
