"""Files and batches over HTTP, as OpenAI's clients speak them: each batch is a run of its own, in a run folder.

    POST /v1/files    -> upload      streamed to disk, a row in the store
    POST /v1/batches  -> service     a row in the store: `validating`
    dispatcher        -> validation  every line looked at: `failed`, or `in_progress`
                      -> driver      `batch.run` on the server's own engines: `finalizing`, `completed`

The store (one SQLite file beside the runs) is all that these parts tell each other: what it says is on disk before anything
acts on it, so each part can die and be started again at any moment.
"""
