from ragkit.checked import BLOCK, CheckedFolder, FileRecord, seal, sync_file  # noqa: F401
