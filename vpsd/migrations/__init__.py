"""The schema's history. HEAD is the version that this code works with; a test holds it against the files.

A new migration takes four steps:

1. Change the tables in a room's `models.py` (a new room's are found by themselves).
2. Write `versions/NNNN_what.py`, with the one before it as `down_revision`.
3. Set HEAD here.
4. `make migrations`: it writes what the migration makes into `shapes.txt`, which each start holds the database against,
   and adds its hash to `versions.sha256`. To edit it before it lands, take that line out and do this step again.

Once it has landed it is never edited, not even a comment, for there are databases that were made with it. What is wrong
with it is put right by the next one.
"""

HEAD = "0012"
