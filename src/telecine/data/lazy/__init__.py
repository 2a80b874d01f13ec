"""Data sets of `clips.index: lazy`, by the headers of their files; and the files in which all indices are saved.

The index of a data set is saved in these files, which `clips.index: ahead` uses, too. `D` is the folder
`.telecine-index.d`:

| file | has | written by | read by | not used after a change of |
|---|---|---|---|---|
| `D/addresses` | sizes at addresses in lists | `load_table.py` | the next run | the file of an address |
| `D/shards/*` | headers, exact indices | `shards.py`, of many files | all runs | the key |
| `D/headers` | headers | earlier versions of telecine | all runs | the key |
| `D/ab/ab01...` | the exact index of a file | `saved_infos.py`, at its first draw | all runs | the key |
| | or why it has none | or `telecine data index` | all runs | the key, `clips.max_pixels`, `clips.channels`, or PyAV |
| `D/members/*` | headers of all tar files | `mapped_members.py` | the next run | fingerprint of a tar file |
| `.NAME.tar.telecine-index` | headers, exact indices | `sidecar.py` | all runs | size or ends of the tar file |

All of them are ignored, and shards removed, if they have another number of their format, or are damaged. A fingerprint
is the size and the time of change of a file, or the version on its server; a key is a hash of the fingerprint and the
name. The files are beside the data or in the user's cache folder, see `telecine.data.index_paths`.

A sidecar moves with its tar file, so it has the names of members alone. `D/members/*` has what sidecars have without
exact indices, in one file that processes map into the same memory. Tar files with arrays have no sidecar, and data with
one of them has no such file: the axes of arrays are settings of a run.
"""
