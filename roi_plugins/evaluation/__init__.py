"""Average precision as COCO has it, its errors by kind, and how sure it is."""
