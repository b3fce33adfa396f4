"""The terms of the joint objective. Ground floor: tensors in, typed results out, no model."""
