"""Pure geometry: poses, boxes, anchors, overlaps and the BEV grid. No files, no weights."""
