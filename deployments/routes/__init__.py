"""HTTP over ``deployments.service.Service``: no Ray, no torch."""
